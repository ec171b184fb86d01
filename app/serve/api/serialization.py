"""Turns domain objects into JSON-ready dicts whose fields are those of `response_schemas.py`.

The same rows are returned over HTTP, written to files and printed on a screen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel

from app.scores import (
    CompositePart,
    ConceptContribution,
    Contribution,
    Score,
    ScoredPassage,
    ScoredTurn,
    TokenCredit,
)
from app.serve.api import explanation_schemas, response_schemas
from app.serve.api.comparison import Comparison
from app.types import EncodedItem

Serializer = Callable[..., dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Each:
    """Getter of a list: the objects of the field's attribute, each passed through a serializer."""

    serializer: Serializer


Getter = str | Each | Callable[..., Any]


def build_serializer(schema: type[BaseModel], /, *sources: type, **getters: Getter) -> Serializer:
    """Return a function that takes one object of each source type and returns the schema's fields as a dict.

    A field is read from the attribute of the same name of the first source type that has it, or by its
    getter: an attribute path, `Each`, or a function of all objects. A field without either is a TypeError,
    which ends the import. A field with a default is left out if its value is None, or a list of no elements.

    The function's code is generated once: a loop over the fields takes two to three times as long as a dict
    display.
    """
    if unknown := getters.keys() - schema.model_fields.keys():
        raise TypeError(f"{schema.__name__} has no field {min(unknown)!r}")
    lines = _serializer_lines(schema, sources, getters)
    code = f"def serialize({_parameters(sources)}):\n" + "".join(f"    {line}\n" for line in lines)
    namespace: dict[str, Any] = {f"get_{name}": _function(getter) for name, getter in getters.items()}
    exec(code, namespace)  # noqa: S102 # the code consists of names in this repository only
    serializer: Serializer = namespace["serialize"]
    return serializer


def _serializer_lines(
    schema: type[BaseModel], sources: tuple[type, ...], getters: dict[str, Getter]
) -> list[str]:
    required, optional = [], []
    for name, field in schema.model_fields.items():
        getter = getters.get(name, name)
        value, converted = _field_code(f"{schema.__name__}.{name}", name, getter, sources)
        if field.is_required():
            required.append(f"{name!r}: {converted.format(value=value)}")
        else:
            condition = "value" if isinstance(getter, Each) else "value is not None"
            assignment = f"row[{name!r}] = {converted.format(value='value')}"
            optional += [f"value = {value}", f"if {condition}: {assignment}"]
    return [f"row = {{{', '.join(required)}}}", *optional, "return row"]


def _field_code(field: str, name: str, getter: Getter, sources: tuple[type, ...]) -> tuple[str, str]:
    """Return the code that reads a field's value, and the code that converts `{value}`."""
    if isinstance(getter, Each):
        return _attribute_code(field, name, sources), f"[get_{name}(element) for element in {{value}}]"
    if isinstance(getter, str):
        return _attribute_code(field, getter, sources), "{value}"
    return f"get_{name}({_parameters(sources)})", "{value}"


def _attribute_code(field: str, path: str, sources: tuple[type, ...]) -> str:
    for index, source in enumerate(sources):
        if _has_path(source, path):
            return f"source{index}.{path}"
    types = " or ".join(source.__name__ for source in sources)
    raise TypeError(f"{field}: {types} has no attribute {path!r}; rename it or pass a getter for the field")


def _has_path(source: Any, path: str) -> bool:
    first, _, rest = path.partition(".")
    hints = get_type_hints(source)
    if rest:
        return first in hints and _has_path(hints[first], rest)
    return first in hints or hasattr(source, first)


def _parameters(sources: tuple[type, ...]) -> str:
    return ", ".join(f"source{index}" for index in range(len(sources)))


def _function(getter: Getter) -> Any:
    return getter.serializer if isinstance(getter, Each) else getter


def build_body(schema: type[BaseModel], /, **values: Any) -> dict[str, Any]:
    """Return JSON-ready values in the schema's field order, with the defaults of fields that are not given.

    The values are not validated or copied. A field that is missing or that the schema lacks is a TypeError.
    """
    fields = schema.model_fields
    unknown = values.keys() - fields.keys()
    if unknown and schema.model_config.get("extra") != "allow":
        raise TypeError(f"{schema.__name__} has no field {min(unknown)!r}")
    if missing := [name for name in fields if fields[name].is_required() and name not in values]:
        raise TypeError(f"{schema.__name__} needs a value for {missing[0]!r}")
    return {name: values.get(name, field.default) for name, field in fields.items()} | values


@dataclass(slots=True)
class RowPosition:
    """The number of a row, and the input and the response that it belongs to."""

    index: int
    input: int
    response: int


def _credits(contribution: Contribution | ConceptContribution) -> list[float] | None:
    return list(contribution.credits) or None


serialize_concept = build_serializer(explanation_schemas.ConceptSchema, ConceptContribution, credits=_credits)
serialize_token = build_serializer(explanation_schemas.TokenCreditSchema, TokenCredit)
serialize_contribution = build_serializer(
    explanation_schemas.FeatureContributionSchema,
    Contribution,
    id="feature.latent",
    sign="feature.sign",
    label="feature.label",
    label_score="feature.label_score",
    label_items="feature.label_items",
    credits=_credits,
    url="feature.url",
)
_SCORE_GETTERS: dict[str, Getter] = {
    "baseline_reward": "baseline",
    "steer": lambda score, *_: dict(score.steer) or None,
    "features": Each(serialize_contribution),
    "prompt_tokens": "response_start",
    "response_tokens": lambda _, encoded, *__: encoded.response_end - encoded.response_start,
    "parts": Each(build_serializer(explanation_schemas.CompositePartSchema, CompositePart)),
    "concepts": Each(serialize_concept),
    "tokens": Each(serialize_token),
    "turns": Each(build_serializer(explanation_schemas.TurnRewardSchema, ScoredTurn)),
    "passages": Each(build_serializer(explanation_schemas.PassageSchema, ScoredPassage)),
}
serialize_score = build_serializer(response_schemas.ScoreSchema, Score, EncodedItem, **_SCORE_GETTERS)
serialize_reward = build_serializer(
    response_schemas.RewardSchema, Score, EncodedItem, RowPosition, **_SCORE_GETTERS
)
serialize_margin = build_serializer(
    response_schemas.MarginSchema,
    Comparison,
    chosen_reward="chosen.reward",
    rejected_reward="rejected.reward",
    features=Each(serialize_contribution),
    concepts=Each(serialize_concept),
    chosen_tokens=Each(serialize_token),
    rejected_tokens=Each(serialize_token),
)
