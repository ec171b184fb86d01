"""The sizes of the experiment."""

from dataclasses import dataclass, fields, replace

from app.errors import DataError


@dataclass(frozen=True, slots=True)
class Preset:
    """Sizes: `learnt` pairs train the reward models, `standard` of them StandardRM, `gold` others gold."""

    seeds: int = 3
    rounds: int = 1
    per_round: int = 20
    new_tokens: int = 32
    epochs: int = 1
    lr: float = 5e-4
    batch: int = 4
    step: int = 4
    answered: int = 16
    compared: int = 48
    learnt: int = 400
    gold: int = 400
    standard: int = 64
    standard_epochs: int = 1
    pool_prompts: int = 6
    pool: int = 64
    k: int = 128


PRESETS = {
    "small": Preset(),
    "full": Preset(
        rounds=3, per_round=256, new_tokens=64, epochs=3, lr=1e-4, batch=16, step=8, answered=128,
        compared=1600, learnt=1000, gold=4000, standard=1000, standard_epochs=3, pool_prompts=128,
    ),
}  # fmt: skip


def override_preset(preset: Preset, overrides: list[str]) -> Preset:
    """The preset with fields replaced by NAME=VALUE."""
    types = {field.name: type(getattr(preset, field.name)) for field in fields(preset)}
    values = {}
    for override in overrides:
        name, _, value = override.partition("=")
        if name not in types:
            raise DataError(f"no size {name!r}; choose from: {', '.join(types)}")
        values[name] = types[name](value)
    return replace(preset, **values)
