"""What an alignment run is to do: one frozen object, from a TOML file and flags."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import DataError


class Plan(BaseModel):
    """Every choice of a run; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: str = Field(description="Pairs or prompts to learn from; a prompt is used in one round.")
    test: str = Field(description="Pairs to measure on; never learnt from.")
    model: str = Field(description="The reward model that filters.")
    held_out: str = Field("", description="A second reward model that only watches.")
    policy: str = Field("smollm2-135m-instruct", description="The language model to align.")
    labels: Literal["self", "data", "reward"] = Field(
        "self", description="Who prefers: the policy itself, the data, or the reward (best and worst)."
    )
    criterion: str = Field("better", description="What the policy judges its answers by: which one is ...?")
    rounds: int = Field(3, ge=1, le=100, description="Rounds at most.")
    per_round: int = Field(256, ge=1, description="Prompts of a round.")
    candidates: int = Field(2, ge=2, le=64, description="Responses to each of them.")
    new_tokens: int = Field(64, ge=1, description="Tokens of a response at most.")
    temperature: float = Field(1.0, gt=0, description="How freely responses are drawn.")
    min_margin: float = Field(0.0, description="Pairs whose preferred response leads by less are dropped.")
    epochs: int = Field(3, ge=1, description="Passes over the pairs of a round.")
    lr: float = Field(1e-4, gt=0, description="Learning rate of DPO.")
    beta: float = Field(0.1, gt=0, description="How dear it is to leave the start.")
    batch: int = Field(16, ge=1, description="Pairs of a step.")
    step: int = Field(4, ge=1, description="Pairs computed at once.")
    rank: int = Field(16, ge=1, description="Rank of LoRA.")
    max_tokens: int = Field(512, ge=32, description="Longest prompt and response together.")
    answered: int = Field(64, ge=2, description="Test prompts that are answered after each round.")
    compared: int = Field(400, ge=2, description="Test pairs whose likelihoods are compared.")
    max_kl: float = Field(0.5, gt=0, description="Stop beyond this KL to the start, nats a token.")
    max_drift: float = Field(
        20.0, gt=0, description="Stop when the mean distance has risen by more percentile points."
    )
    watch: bool = Field(default=True, description="Stop when the reward is being hacked.")
    seed: int = Field(0, description="Of everything that is drawn.")


def read(file: Path | None, **given: Any) -> Plan:
    """A plan from a file, where one is given; what else is given goes before it."""
    try:
        found = tomllib.loads(file.read_text()) if file else {}
        return Plan(**{**found, **{name: value for name, value in given.items() if value is not None}})
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{file}: {error}") from error
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise DataError(f"{file or 'plan'}: {said}") from error
