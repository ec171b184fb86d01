"""pairs → features → selection → head → calibration → bundle; reads top to bottom."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from app.errors import DataError, NonFinite
from app.evaluate.accuracy import Accuracy, accuracy, advantage, calibration_error, margins
from app.model import bundle
from app.model.bundle import ModelCard, Probe, RewardModel, TrainingData
from app.model.engine import Engine
from app.model.head import Calibration, Head
from app.pairs import split
from app.train import features, fit
from app.train.select import Selection, select
from app.types import Ask, Exchange, Explain, Feature, Job, Message, Pair

PROBES = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Can people breathe under water without equipment?", "No. Human lungs cannot take oxygen from water."),
    ("How many legs does a spider have?", "Nobody knows; some say six, some say a hundred."),
    ("Write one sentence about autumn.", "Autumn turns the hills copper and the mornings quiet."),
)
Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What to make: the task, its data, and the choices the method leaves open."""

    name: str
    pairs: list[Pair]
    data: TrainingData
    test: list[Pair]
    sae: str
    k: int = 128
    limit: int = 1000
    calibration_share: float = 0.2
    plan: fit.Plan = field(default_factory=fit.Plan)


@dataclass(frozen=True, slots=True)
class Findings:
    """What the trained model and its baselines score on the test pairs."""

    selected: Accuracy
    others: dict[str, Accuracy]
    ahead: dict[str, Accuracy]
    ece: float


def train(order: Order, reader: features.Reader, cache: Path, report: Report) -> RewardModel:
    """Make a reward model and save nothing; `save` writes it with its report."""
    fitting, held_out = split(order.pairs, order.calibration_share, seed=order.plan.seed)
    fitting = fitting[: order.limit]
    if len(fitting) < 2 or not held_out:
        raise DataError(
            f"{order.data.name}: too few prompts to train on and hold out ({len(order.pairs)} pairs)"
        )
    held_out = held_out[: max(order.limit // 4, 1)]
    seen = _table(fitting, reader, cache, "training pairs", report)
    unseen = _table(held_out, reader, cache, "held-out pairs", report)
    chosen = select(seen.firing, order.k)
    directions = reader.dictionary.decoder[chosen.latents].cpu()
    groups = [pair.group for pair in fitting]
    head = fit.fit(seen.pooled @ directions.T, groups, order.plan, _share(report, "head", order.plan.epochs))
    calibration = fit.calibrate(head, seen.pooled @ directions.T, unseen.pooled @ directions.T)
    model = _assemble(order, reader, chosen, head, calibration)
    if order.test:
        tested = _table(order.test, reader, cache, "test pairs", report)
        found = _examine(order, (seen, tested), directions, model, groups, report)
        model = replace(model, card=replace(model.card, metrics=_metrics(found)))
    return replace(model, probes=_probes(model, reader))


def save(model: RewardModel, folder: Path) -> None:
    """The bundle and a report people can read."""
    bundle.save(model, folder)
    (folder / "report.json").write_text(json.dumps(model.card.metrics, indent=1) + "\n")
    (folder / "report.md").write_text(_report(model.card))


def _table(
    pairs: list[Pair], reader: features.Reader, cache: Path, what: str, report: Report
) -> features.Table:
    return features.table(pairs, reader, cache, _share(report, what, len(pairs)))


def _assemble(
    order: Order, reader: features.Reader, chosen: Selection, head: Head, calibration: Calibration
) -> RewardModel:
    signs = zip(chosen.latents.tolist(), chosen.signs.tolist(), strict=True)
    card = ModelCard(
        name=order.name,
        task=order.name,
        backbone=reader.backbone.name,
        backbone_digest=reader.backbone.digest,
        template_sha256=reader.text.digest,
        layer=reader.layer,
        readout=reader.readout,
        directions=len(chosen.latents),
        heads=order.plan.heads,
        hidden=order.plan.hidden,
        loss=order.plan.loss,
        sae=order.sae,
        sae_sha256=reader.sae_sha256,
        data=(order.data,),
        use="research use only" if "NC" in order.data.license else "see the license of the data",
        temperature=calibration.temperature,
        metrics={},
        trained_parameters=head.parameters,
        versions={name: version(name) for name in ("sparserm", "torch", "transformers", "sae-lens")},
    )
    described = tuple(Feature(latent, int(sign)) for latent, sign in signs)
    sliced = reader.dictionary.to(torch.device("cpu")).select(chosen.latents)
    return RewardModel(card, sliced, head, calibration, described, ())


def _probes(model: RewardModel, reader: features.Reader) -> tuple[Probe, ...]:
    exchanges = [Exchange((Message("user", prompt),), response) for prompt, response in PROBES]
    engine = Engine(reader.backbone, reader.text, {model.card.name: model})
    jobs = [Job(one, Ask((model.card.name,), Explain.NONE)) for one in engine.encode(exchanges)]
    probes = []
    for exchange, result in zip(exchanges, engine.score(jobs), strict=True):
        if isinstance(result, NonFinite):
            raise result
        probes.append(Probe(exchange, result.scores[0].reward))
    return tuple(probes)


def _examine(
    order: Order,
    tables: tuple[features.Table, features.Table],
    directions: Tensor,
    model: RewardModel,
    groups: list[str],
    report: Report,
) -> Findings:
    """Our accuracy beside the baselines that matter: the same pairs, the same training."""
    seen, tested = tables
    test_groups = [pair.group for pair in order.test]
    generator = torch.Generator().manual_seed(order.plan.seed)
    random = torch.nn.functional.normalize(torch.randn(directions.shape, generator=generator), dim=1)
    ours = margins(model.head, tested.pooled @ directions.T)
    others = {"longer_wins": (tested.tokens[:, 0] - tested.tokens[:, 1]).double()}
    for name, basis in (("random_directions", random), ("dense", torch.eye(directions.shape[1]))):
        progress = _share(report, name.replace("_", " "), order.plan.epochs)
        head = fit.fit(seen.pooled @ basis.T, groups, order.plan, progress)
        others[name] = margins(head, tested.pooled @ basis.T)
    return Findings(
        accuracy(ours, test_groups),
        {name: accuracy(theirs, test_groups) for name, theirs in others.items()},
        {name: advantage(ours, theirs, test_groups) for name, theirs in others.items()},
        calibration_error(ours, model.calibration),
    )


def _metrics(found: Findings) -> dict[str, float]:
    metrics = {**asdict(found.selected), "ece": found.ece}
    for name, other in found.others.items():
        metrics |= {f"{name}_{key}": value for key, value in asdict(other).items() if key != "n"}
    for name, lead in found.ahead.items():
        metrics |= {f"ahead_of_{name}_{key}": value for key, value in asdict(lead).items() if key != "n"}
    return metrics


def _report(card: ModelCard) -> str:
    data = "\n".join(f"- {d.name}: {d.pairs} pairs, {d.license}, sha256 {d.sha256}" for d in card.data)
    head = f"# {card.name}\n\n{card.use}.\n\nTrained on\n{data}\n\n"
    if not card.metrics:
        return head + "Not tested yet.\n"
    m = card.metrics
    rows = [("SparseRM", "", "")]
    rows += [
        (n.replace("_", " "), f"{n}_", f"ahead_of_{n}_")
        for n in ("dense", "random_directions", "longer_wins")
    ]
    lines = []
    for name, own, lead in rows:
        cell = f"{m[own + 'accuracy']:.3f} [{m[own + 'ci_low']:.3f}, {m[own + 'ci_high']:.3f}]"
        ahead = (
            f"{m[lead + 'accuracy']:+.3f} [{m[lead + 'ci_low']:+.3f}, {m[lead + 'ci_high']:+.3f}]"
            if lead
            else ""
        )
        lines.append(f"| {name} | {cell} | {ahead} |")
    table = "\n".join(lines)
    return (
        f"{head}Test pairs: {m['n']:.0f}. Intervals are 95 %, by bootstrap over prompts.\n\n"
        f"| reads | accuracy | SparseRM's lead |\n|---|---|---|\n{table}\n\n"
        f"Calibration error of the probability: {m['ece']:.3f}.\n"
    )


def _share(report: Report, what: str, total: int) -> Callable[[int], None]:
    return lambda done: report(what, done / max(total, 1))
