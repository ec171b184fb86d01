"""Configuration of an alignment run, read from a TOML file and command line options."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import DataError


class AlignmentConfig(BaseModel):
    """All settings of an alignment run. Unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: str = Field(description="Pairs or prompts to train on. Each prompt is used in one round.")
    test: str = Field(description="Pairs to evaluate on. They are never trained on.")
    model: str = Field(description="Reward model that filters the pairs.")
    held_out: str = Field("", description="Second reward model that only monitors reward hacking.")
    policy: str = Field("smollm2-135m-instruct", description="Language model to align.")
    labels: Literal["self", "data", "reward"] = Field(
        "self",
        description="Source of the preferences: the policy itself, the data, or the reward (best and worst).",
    )
    criterion: str = Field(
        "better", description="How the policy compares two responses: it is asked which one is ...?"
    )
    rounds: int = Field(3, ge=1, le=100, description="Maximum number of rounds.")
    per_round: int = Field(256, ge=1, description="Prompts per round.")
    candidates: int = Field(2, ge=2, le=64, description="Sampled responses per prompt.")
    new_tokens: int = Field(64, ge=1, description="Maximum tokens of a response.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature.")
    min_margin: float = Field(
        0.0, description="Minimum reward margin of the preferred response; other pairs are dropped."
    )
    epochs: int = Field(3, ge=1, description="Epochs over the pairs of a round.")
    lr: float = Field(1e-4, gt=0, description="Learning rate of DPO.")
    beta: float = Field(
        0.1, gt=0, description="KL penalty: higher keeps the policy closer to the initial one."
    )
    batch: int = Field(16, ge=1, description="Pairs per optimizer step.")
    step: int = Field(4, ge=1, description="Pairs per forward pass; gradients are accumulated up to `batch`.")
    rank: int = Field(16, ge=1, description="Rank of LoRA.")
    max_tokens: int = Field(512, ge=32, description="Maximum tokens of prompt and response together.")
    answered: int = Field(64, ge=2, description="Test prompts that the policy answers after each round.")
    compared: int = Field(400, ge=2, description="Test pairs whose log-probabilities are compared.")
    max_kl: float = Field(
        0.5, gt=0, description="Stop above this KL divergence from the initial policy, in nats per token."
    )
    max_drift: float = Field(
        20.0, gt=0, description="Stop if the mean distance rises by more than this many percentile points."
    )
    watch: bool = Field(default=True, description="Stop if the reward is being hacked.")
    seed: int = Field(0, description="Seed of all random choices.")


def read_config(file: Path | None, **overrides: Any) -> AlignmentConfig:
    """Return the configuration from a TOML file, if any, with overrides that are not None applied."""
    try:
        values = tomllib.loads(file.read_text()) if file else {}
        explicit = {name: value for name, value in overrides.items() if value is not None}
        return AlignmentConfig(**{**values, **explicit})
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{file}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise DataError(f"{file or 'alignment options'}: {problems}") from error
