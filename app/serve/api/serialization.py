"""Turns domain objects into JSON-ready dicts whose fields are those of `response_schemas.py`.

The same rows are returned over HTTP, written to files and printed on a screen.
"""

from collections.abc import Callable
from typing import Any, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.serve.api import response_schemas
from app.serve.api.comparison import Comparison
from app.types import Cluster, CompositePart, Contribution, EncodedItem, Score, TokenCredit

Serializer = Callable[..., dict[str, Any]]
Getter = str | Callable[..., Any]


def build_serializer(schema: type[BaseModel], /, *sources: type, **getters: Getter) -> Serializer:
    """Return a function that takes one object of each source type and returns the schema's fields as a dict.

    A field is read from the attribute of the same name of the first source type that has it, or by its
    getter: an attribute path, or a function of all objects. A field without either is a TypeError, which
    ends the import. A field with a default is left out if its value is None.

    The function's code is generated once: looking the fields up for each object took two to three times as
    long as a dict display.
    """
    if unknown := getters.keys() - schema.model_fields.keys():
        raise TypeError(f"{schema.__name__} has no field {min(unknown)!r}")
    expressions = {
        name: _field_expression(f"{schema.__name__}.{name}", name, getters.get(name, name), sources)
        for name in schema.model_fields
    }
    namespace = {f"get_{name}": getter for name, getter in getters.items() if callable(getter)}
    exec(_function_code(schema.model_fields, expressions, len(sources)), namespace)  # noqa: S102 # of our own names only
    serializer: Serializer = namespace["serialize"]
    return serializer


def _field_expression(field: str, name: str, getter: Getter, sources: tuple[type, ...]) -> str:
    """Return the code that reads a field from the objects `source0`, `source1`, …."""
    if callable(getter):
        return f"get_{name}({_parameters(len(sources))})"
    for index, source in enumerate(sources):
        if _has_path(source, getter):
            return f"source{index}.{getter}"
    types = " or ".join(source.__name__ for source in sources)
    raise TypeError(f"{field}: {types} has no attribute {getter!r}; rename it or pass a getter for the field")


def _function_code(fields: dict[str, FieldInfo], expressions: dict[str, str], num_sources: int) -> str:
    """Return the code of a serializer; the fields that can be left out come last."""
    required = [f"{name!r}: {expressions[name]}" for name in fields if fields[name].is_required()]
    optional = [
        f"    if (value := {expressions[name]}) is not None:\n        row[{name!r}] = value\n"
        for name in fields
        if not fields[name].is_required()
    ]
    return (
        f"def serialize({_parameters(num_sources)}):\n"
        f"    row = {{{', '.join(required)}}}\n"
        f"{''.join(optional)}"
        f"    return row\n"
    )


def _parameters(num_sources: int) -> str:
    return ", ".join(f"source{index}" for index in range(num_sources))


def _has_path(source: Any, path: str) -> bool:
    first, _, rest = path.partition(".")
    hints = get_type_hints(source)
    if rest:
        return first in hints and _has_path(hints[first], rest)
    return first in hints or hasattr(source, first)


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


serialize_contribution = build_serializer(
    response_schemas.FeatureContributionSchema,
    Contribution,
    id="feature.latent",
    sign="feature.sign",
    label="feature.label",
    label_score="feature.label_score",
    url="feature.url",
)
serialize_cluster = build_serializer(response_schemas.ClusterSchema, Cluster)
serialize_part = build_serializer(response_schemas.CompositePartSchema, CompositePart)
serialize_token = build_serializer(response_schemas.TokenCreditSchema, TokenCredit)


def _features(score: Score, _: EncodedItem) -> list[dict[str, Any]]:
    return [serialize_contribution(contribution) for contribution in score.features]


def _parts(score: Score, _: EncodedItem) -> list[dict[str, Any]] | None:
    return [serialize_part(part) for part in score.parts] or None


def _clusters(score: Score, _: EncodedItem) -> list[dict[str, Any]] | None:
    return [serialize_cluster(cluster) for cluster in score.clusters] or None


def _tokens(score: Score, _: EncodedItem) -> list[dict[str, Any]] | None:
    return None if score.tokens is None else [serialize_token(token) for token in score.tokens]


serialize_score = build_serializer(
    response_schemas.ScoreSchema,
    Score,
    EncodedItem,
    baseline_reward="baseline",
    steer=lambda score, _: dict(score.steer) or None,
    features=_features,
    prompt_tokens="response_start",
    response_tokens=lambda _, encoded: encoded.response_end - encoded.response_start,
    parts=_parts,
    clusters=_clusters,
    tokens=_tokens,
)
serialize_margin = build_serializer(
    response_schemas.MarginSchema,
    Comparison,
    chosen_reward="chosen.reward",
    rejected_reward="rejected.reward",
    features=lambda comparison: [serialize_contribution(share) for share in comparison.features],
)
