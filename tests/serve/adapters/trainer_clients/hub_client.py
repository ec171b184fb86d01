"""Request predictions with huggingface_hub's inference client, as TEI's users do: URL, texts → JSON."""

import json
import os
import sys
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "0"  # all requests go to our own server

import huggingface_hub

client = huggingface_hub.InferenceClient(model=f"{sys.argv[1]}/predict")
rows: list[Any] = [client.text_classification(text) for text in json.loads(sys.argv[2])]
print(json.dumps({"version": huggingface_hub.__version__, "rewards": [row.score for row in rows]}))
