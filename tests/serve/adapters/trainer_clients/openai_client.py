"""Request rewards as embeddings with the openai client: URL, texts → JSON."""

import json
import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
response = client.embeddings.create(model="alpha", input=json.loads(sys.argv[2]))
print(json.dumps({"version": openai.__version__, "rewards": [row.embedding[0] for row in response.data]}))
