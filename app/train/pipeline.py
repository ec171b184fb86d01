"""pairs → features → selection → head → calibration → names → bundle; reads top to bottom."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.data.pairs import match_condition
from app.errors import DataError, NonFiniteScore
from app.evaluate.accuracy import ScoredPairs, accuracy_difference, bootstrap_mean, evaluate_pairs, pair_wins
from app.reward.directions import Dictionary
from app.reward.engine import Engine
from app.reward.head import Head
from app.reward.reward_model import ModelCard, Probe, RewardModel, TrainingData
from app.train import features, head_training
from app.train.augmentation import augment_rejected
from app.train.calibration import CALIBRATION_FOLDS, ResponseLengths, calibrate_head
from app.train.names import labels
from app.train.names.contexts import collect_contexts
from app.train.selection import Selection, select_latents
from app.train.variants import BASELINES, Arena, Drilled
from app.types import Explain, Feature, Item, Message, Pair, Pooling, ScoreJob, ScoreOptions

PROBES = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Can people breathe under water without equipment?", "No. Human lungs cannot take oxygen from water."),
    ("How many legs does a spider have?", "Nobody knows; some say six, some say a hundred."),
    ("Write one sentence about autumn.", "Autumn turns the hills copper and the mornings quiet."),
)
DRILLS = 0.5
Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What to make: the task, its data, and the choices the method leaves open.

    Limit 0 takes every pair; `drills` is the share of pairs learnt from once more, dressed up.
    """

    name: str
    pairs: list[Pair]
    data: TrainingData
    test_pairs: list[Pair]
    sae_name: str
    pooling: Pooling = Pooling.MEAN
    k: int = 128
    max_pairs: int = 1000
    augment_share: float = DRILLS
    slices: tuple[str, ...] = ()
    head: head_training.HeadTrainingConfig = field(default_factory=head_training.HeadTrainingConfig)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A trained model and what is known about it."""

    model: RewardModel
    findings: dict[str, Any]


class Learnt(NamedTuple):
    """Directions and a head over them, with what they were learnt from and how."""

    chosen: Selection
    dictionary: Dictionary
    lesson: head_training.TrainingSet
    plan: head_training.HeadTrainingConfig
    head: Head


def train(
    order: TrainingConfig,
    reader: features.FeatureExtractor,
    cache: Path,
    report: Report,
    neuronpedia: str | None = None,
) -> TrainingResult:
    """Make a reward model and save nothing; `neuronpedia` is where its SAE's features can be looked up."""
    started = time.perf_counter()
    fitting = drawn(order)
    seen = table(fitting, reader, cache, "training pairs", report)
    dressed = drilled(order.augment_share, fitting, seen, reader, cache, report)
    extracted = time.perf_counter()
    chosen, sliced, lesson, plan, head = learn(order, fitting, seen, dressed, reader, report)
    read = collect_contexts(fitting, reader, cache, lambda done: report("single tokens", done))
    single = sliced.project(read.residuals[torch.from_numpy(read.response_offset >= 0)].cpu())
    counted = ResponseLengths(seen.lengths(), seen.pooled_lengths(order.pooling))
    calibration = calibrate_head(
        head, lesson, counted, single, plan, lambda done: report("calibration", done)
    )
    fitted = time.perf_counter()
    card = _card(replace(order, plan=plan), reader, head, calibration.temperature, len(fitting))
    model = RewardModel(card, sliced, head, calibration, _described(chosen), ())
    resident = sliced.to(reader.backbone.device)
    named = labels.name_features(model.features, resident, read, reader.text, reader.backbone, neuronpedia)
    model = replace(model, features=named)
    training = {
        "pairs": len(fitting),
        "drills": len(dressed.owners) if dressed else 0,
        "prompts": len(set(lesson.groups)),
        "seconds_extracting": round(extracted - started, 1),
        "seconds_fitting": round(fitted - extracted, 1),
        "plan": asdict(plan),
    }
    selection = {"false_discovery": chosen.false_discovery, "overlap": chosen.overlap}
    findings: dict[str, Any] = {"training": training, "selection": selection, "names": _naming(named)}
    if order.test_pairs:
        tested = table(order.test_pairs, reader, cache, "test pairs", report)
        ground = (fitting, seen, order.test_pairs, tested, reader.dictionary, reader.layers[0])
        arena = Arena(*ground, order.pooling, order.k, plan, dressed)
        findings |= _examined(order, arena, model, report)
        metrics = {name: findings["test"][name] for name in ("accuracy", "ci_low", "ci_high", "n", "ece")}
        model = replace(model, card=replace(model.card, metrics=metrics))
    return TrainingResult(replace(model, probes=probes(model, reader)), findings)


def learn(
    order: TrainingConfig,
    fitting: list[Pair],
    seen: features.PairFeatures,
    dressed: Drilled | None,
    reader: features.FeatureExtractor,
    report: Report,
) -> Learnt:
    """Select directions and train a head on them, its plan tuned."""
    groups = [pair.group for pair in fitting]
    chosen = select_latents(seen.firing_rates(order.pooling), groups, order.k, seed=order.head.seed)
    sliced = reader.dictionary.to(torch.device("cpu")).select(chosen.latents).orthogonalize()
    layer, *_ = reader.layers
    lesson = head_training.TrainingSet.from_vectors(
        seen.pooled_residuals(layer, order.pooling), sliced.directions, groups
    )
    if dressed:
        vectors = dressed.table.pooled_residuals(layer, order.pooling)
        lesson = lesson.with_augmented(sliced.project(vectors), dressed.groups)
    plan = head_training.tune_config(lesson, order.head, lambda done: report("cross-validation", done))
    head = head_training.fit_head(lesson, plan, _share(report, "head", plan.epochs))
    return Learnt(chosen, sliced, lesson, plan, head)


def drawn(order: TrainingConfig) -> list[Pair]:
    """The pairs to train on."""
    fitting = order.pairs[: order.max_pairs] if order.max_pairs else order.pairs
    if len({pair.group for pair in fitting}) < CALIBRATION_FOLDS:
        raise DataError(
            f"{order.data.name}: {len(fitting)} pairs of fewer than {CALIBRATION_FOLDS} prompts; "
            "cross-validation needs more"
        )
    return fitting


def drilled(
    share: float,
    pairs: list[Pair],
    seen: features.PairFeatures,
    reader: features.FeatureExtractor,
    cache: Path,
    report: Report,
) -> Drilled | None:
    """A share of the pairs with the rejected response dressed up, and what is read of them."""
    made = augment_rejected(pairs, share)
    if not made:
        return None
    owners, dressed = [i for i, _ in made], [(exchange,) for _, exchange in made]
    found = features.extract_features(dressed, reader, cache, _share(report, "drills", len(set(dressed))))
    return Drilled(owners, [pairs[i].group for i in owners], seen.with_rejected(owners, found))


def table(
    pairs: list[Pair], reader: features.FeatureExtractor, cache: Path, what: str, report: Report
) -> features.PairFeatures:
    """Features of pairs, with progress under a name."""
    responses = [pair.items for pair in pairs]
    count = len({exchange for row in responses for exchange in row})
    return features.extract_features(responses, reader, cache, _share(report, what, count))


def _card(
    order: TrainingConfig, reader: features.FeatureExtractor, head: Head, temperature: float, pairs: int
) -> ModelCard:
    return ModelCard(
        name=order.name,
        task=order.name,
        backbone=reader.backbone.name,
        backbone_digest=reader.backbone.digest,
        template_sha256=reader.text.digest,
        layer=reader.layers[0],
        readout=order.pooling,
        directions=len(head.center),
        heads=order.head.heads,
        hidden=order.head.hidden,
        loss=order.head.loss,
        sae=order.sae_name,
        sae_sha256=reader.sae_sha256,
        sae_length=reader.dictionary.input_norm,
        data=(replace(order.data, pairs=pairs),),
        use="research use only" if "NC" in order.data.license else "see the license of the data",
        temperature=temperature,
        metrics={},
        trained_parameters=head.num_parameters,
        versions={name: version(name) for name in ("sparserm", "torch", "transformers", "sae-lens")},
    )


def _described(chosen: Selection) -> tuple[Feature, ...]:
    evidence = (chosen.latents, chosen.signs, chosen.difference, chosen.stability)
    return tuple(
        Feature(latent, int(sign), difference=round(apart, 5), stability=round(stable, 3))
        for latent, sign, apart, stable in zip(*(t.tolist() for t in evidence), strict=True)
    )


def probes(model: RewardModel, reader: features.FeatureExtractor) -> tuple[Probe, ...]:
    """A few exchanges with the rewards a model gives them: its own test."""
    exchanges = [Item((Message("user", prompt),), response) for prompt, response in PROBES]
    engine = Engine(reader.backbone, reader.text, {model.card.name: model})
    jobs = [ScoreJob(one, ScoreOptions((model.card.name,), Explain.NONE)) for one in engine.encode(exchanges)]
    found = []
    for exchange, result in zip(exchanges, engine.score(jobs), strict=True):
        if isinstance(result, NonFiniteScore):
            raise result
        found.append(Probe(exchange, result.scores[0].reward))
    return tuple(found)


def _naming(named: tuple[Feature, ...]) -> dict[str, Any]:
    scores = [feature.label_score for feature in named if feature.label_score is not None]
    return {
        "named": len(scores),
        "directions": len(named),
        "median_score": float(torch.tensor(scores).median()) if scores else None,
        "projection_tells_firing": sum(feature.projection_predicts_firing for feature in named),
    }


def _judged(arena: Arena, model: RewardModel) -> ScoredPairs:
    projections = (
        arena.tested.pooled_residuals(arena.layer, arena.readout) @ model.dictionary.directions.cpu().T
    )
    groups = [pair.group for pair in arena.test]
    return ScoredPairs(head_training.compute_rewards(model.head, projections), arena.tested.lengths(), groups)


def _examined(order: TrainingConfig, arena: Arena, model: RewardModel, report: Report) -> dict[str, Any]:
    """Our accuracy beside the baselines that matter: the same pairs, the same training."""
    judged = _judged(arena, model)
    slices = {fact: match_condition(order.test_pairs, fact) for fact in order.slices}
    compared: dict[str, Any] = {}
    for done, (name, rival) in enumerate(BASELINES.items()):
        report("baselines", done / len(BASELINES))
        theirs = pair_wins(rival(arena))
        lead = accuracy_difference(pair_wins(judged.margins), theirs, judged.groups)
        compared[name] = {**asdict(bootstrap_mean(theirs, judged.groups)), "lead": asdict(lead)}
    report("baselines", 1.0)
    return {"test": evaluate_pairs(judged, model.calibration.temperature, slices), "baselines": compared}


def _share(report: Report, what: str, total: int) -> Callable[[int], None]:
    """A listener that turns a count into a share of a stage."""
    return lambda done: report(what, done / max(total, 1))
