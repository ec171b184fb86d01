"""Rerank with the cohere client: URL, prompt, responses → JSON."""

import json
import sys
from importlib.metadata import version

import cohere

client = cohere.ClientV2(api_key="none", base_url=sys.argv[1])
documents = json.loads(sys.argv[3])
response = client.rerank(model="alpha", query=sys.argv[2], documents=documents, top_n=2)
print(
    json.dumps(
        {
            "version": version("cohere"),
            "rewards": [[row.index, row.relevance_score] for row in response.results],
        }
    )
)
