"""python -m benchmarks.peers.launch.padded_naive CHECKPOINT PORT."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.launch.padded import PaddedModel


class RewardRequest(BaseModel):
    """The texts to score."""

    query: list[str]


def create_app(model: PaddedModel) -> FastAPI:
    """The app. Its route computes inside the event loop, so a request blocks all others."""
    app = FastAPI()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/get_reward")
    async def get_reward(body: RewardRequest) -> dict[str, list[float]]:
        return {"rewards": model.score_texts(body.query)}

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_app(PaddedModel(sys.argv[1])), port=int(sys.argv[2]), log_level="warning", backlog=4096
    )
