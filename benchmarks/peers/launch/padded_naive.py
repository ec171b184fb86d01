"""python -m benchmarks.peers.launch.padded_naive CHECKPOINT PORT."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.launch.padded import Padded


class Query(BaseModel):
    """Texts to score."""

    query: list[str]


def create_app(padded: Padded) -> FastAPI:
    """A route that computes where it should wait."""
    app = FastAPI()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/get_reward")
    async def get_reward(body: Query) -> dict[str, list[float]]:
        return {"rewards": padded.texts(body.query)}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(Padded(sys.argv[1])), port=int(sys.argv[2]), log_level="warning", backlog=4096)
