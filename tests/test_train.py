"""Training end to end on the tiny backbone: chats → SAE → pairs → bundle → served rewards."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import SourceError
from app.evaluate.accuracy import accuracy, advantage, calibration_error
from app.model import bundle, home
from app.model.head import Calibration
from app.pairs import read_chats
from app.settings import Settings
from app.train import activations, features, fit, recipe, sae, studio
from app.train.select import select
from app.types import Ask, ReadOut
from tests import tiny


def quiet(*_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A tiny backbone, chats and pairs in which 'amber' is what people like."""
    root = tmp_path_factory.mktemp("workshop")
    tiny.backbone_folder(root / "backbone")
    rng = random.Random(0)
    words = [word for word in tiny.WORDS if word != "amber"]
    chats, pairs = [], []
    for n in range(500):
        talk = [
            {"role": r, "content": " ".join(rng.choices(tiny.WORDS, k=12))} for r in ("user", "assistant")
        ]
        chats.append({"messages": talk})
        plain = rng.choices(words, k=6)
        liked = [*plain[:3], "amber", "amber", *plain[3:]]
        pairs.append(
            {"prompt": f"river {n % 90}?", "chosen": " ".join(liked), "rejected": " ".join([*plain, "glass"])}
        )
    for name, rows in (("chats", chats), ("pairs", pairs[:400]), ("test", pairs[400:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny.settings(root)


@pytest.fixture(scope="module")
def made_sae(workshop: Settings) -> Path:
    root = workshop.models_dir.parent
    what = studio.SaeOrder(str(root / "backbone"), 3, 128, 8, 13_000, 2048 * 12, 0)
    facts = studio.make_sae(what, root / "chats.jsonl", root / "sae", workshop, quiet)
    assert facts["quality"]["l0"] > 0
    return root / "sae"


def test_the_sae_on_disk_is_what_sae_lens_saved(made_sae: Path) -> None:
    from sae_lens import SAE

    theirs = SAE.load_from_disk(made_sae, device="cpu")
    ours = sae.load(made_sae)
    z = torch.randn(64, tiny.WIDTH)
    with torch.no_grad():
        assert torch.allclose(ours.activate(z), theirs.encode(z), atol=1e-5)
    assert theirs.cfg.architecture() == "jumprelu"


def test_a_trained_bundle_is_served_and_has_learnt(workshop: Settings, made_sae: Path) -> None:
    root = workshop.models_dir.parent
    order = studio.order(
        root / "pairs.jsonl",
        root / "test.jsonl",
        name="amber",
        terms="CC0",
        sae=made_sae,
        k=16,
        limit=200,
        seed=0,
    )
    model = studio.make(order, made_sae, "mean", workshop, quiet)
    assert model.card.metrics["accuracy"] > 0.9
    assert model.card.metrics["n"] == 100
    assert "SparseRM" in (workshop.models_dir / "amber" / "report.md").read_text()
    engine = home.engine(workshop, quiet)
    engine.verify()
    liked, other = (
        tiny.exchange("river 1?", text) for text in ("seven amber amber maple", "seven maple glass")
    )
    (better,), (worse,) = tiny.scores(engine, [liked, other], Ask(("amber",)))
    assert better.reward > worse.reward


def test_training_again_gives_the_same_bundle(workshop: Settings, made_sae: Path, tmp_path: Path) -> None:
    root = workshop.models_dir.parent
    order = studio.order(
        root / "pairs.jsonl", None, name="twice", terms="CC0", sae=made_sae, k=16, limit=200, seed=3
    )
    sums = []
    for _ in range(2):
        studio.make(order, made_sae, "end", workshop, quiet)
        sums.append((workshop.models_dir / "twice" / "SHA256SUMS").read_text())
    assert sums[0] == sums[1]
    (workshop.models_dir / "twice").rename(tmp_path / "twice")


def test_data_for_research_says_so(workshop: Settings, made_sae: Path) -> None:
    root = workshop.models_dir.parent
    order = studio.order(
        root / "pairs.jsonl", None, name="nc", terms="CC BY-NC 4.0", sae=made_sae, k=16, limit=50, seed=0
    )
    backbone, text = home.resident(str(root / "backbone"), 3, workshop, quiet)
    reader = features.Reader(backbone, text, sae.load(made_sae), 3, ReadOut.MEAN, "x")
    assert recipe.train(order, reader, workshop.cache, quiet).card.use == "research use only"


def test_an_sae_of_another_backbone_is_refused(workshop: Settings, made_sae: Path) -> None:
    root = workshop.models_dir.parent
    note = json.loads((made_sae / "provenance.json").read_text())
    other = root / "other-sae"
    other.mkdir()
    (other / "provenance.json").write_text(json.dumps({**note, "backbone_digest": "sha256:0"}))
    order = studio.order(root / "pairs.jsonl", None, name="x", terms="", sae=other, k=4, limit=9, seed=0)
    with pytest.raises(SourceError, match="was trained on sha256:0"):
        studio.make(order, other, "mean", workshop, quiet)


def test_an_interrupted_harvest_goes_on(workshop: Settings, tmp_path: Path) -> None:
    root = workshop.models_dir.parent
    backbone, text = home.resident(str(root / "backbone"), 3, workshop, quiet)
    stores = [activations.Store(tmp_path / name, tiny.WIDTH) for name in ("straight", "broken")]

    def harvest(store: activations.Store, tokens: int) -> None:
        chats = read_chats(root / "chats.jsonl")
        activations.harvest(
            chats, backbone=backbone, text=text, layer=3, tokens=tokens, store=store, report=quiet
        )

    harvest(stores[0], 8000)
    harvest(stores[1], 3000)
    with (stores[1].folder / "activations.f16").open("ab") as stream:
        stream.write(b"half a row that was never noted")
    harvest(stores[1], 8000)
    assert stores[0].rows().tobytes() == stores[1].rows().tobytes()


def test_features_are_cached_by_block(workshop: Settings, made_sae: Path, tmp_path: Path) -> None:
    root = workshop.models_dir.parent
    backbone, text = home.resident(str(root / "backbone"), 3, workshop, quiet)
    reader = features.Reader(backbone, text, sae.load(made_sae), 3, ReadOut.LAST, "x")
    order = studio.order(root / "pairs.jsonl", None, name="x", terms="", sae=made_sae, k=4, limit=9, seed=0)
    first = features.table(order.pairs[:40], reader, tmp_path, quiet)
    files = sorted((tmp_path / "features").iterdir())
    files[1].unlink()
    again = features.table(order.pairs[:40], reader, tmp_path, quiet)
    assert len(files) == 3
    assert torch.equal(first.pooled, again.pooled)
    assert torch.equal(first.firing, again.firing)


def test_selection_takes_the_largest_differences() -> None:
    firing = torch.zeros(10, 2, 6)
    firing[:, 0, 2], firing[:, 1, 4], firing[:5, 0, 1] = 1, 1, 1
    chosen = select(firing, 2)
    assert chosen.latents[:2].tolist() == [2, 1]
    assert chosen.latents[2].item() == 4
    assert chosen.signs.tolist() == [1, 1, -1, -1]


@pytest.mark.parametrize("loss", list(fit.LOSSES))
def test_every_head_learns_and_is_standardised(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, 8, generator=generator) * 3 + 5
    x[:, 0, 0] += 6
    groups = [str(i) for i in range(200)]
    head = fit.fit(x, groups, fit.Plan(heads=4, hidden=16, loss=loss, epochs=100, lr=5e-3), quiet)
    rewards = head.members(head.standardise(x.flatten(0, 1)))
    assert torch.allclose(rewards.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(rewards.std(0), torch.ones(4, dtype=torch.float64), atol=1e-2)
    assert (rewards.reshape(200, 2, 4)[:, 0] > rewards.reshape(200, 2, 4)[:, 1]).double().mean() > 0.8
    assert not torch.equal(head.w1[0], head.w1[1])


def test_calibration_reads_as_it_says() -> None:
    ranks = torch.linspace(0, 10, 201, dtype=torch.float64)
    table = Calibration(2.0, ranks, torch.eye(2, dtype=torch.float64), ranks)
    assert table.percentile(torch.tensor([-1.0, 5.0, 99.0], dtype=torch.float64)).tolist() == [0, 50, 100]
    assert table.distance(torch.tensor([[3.0, 4.0]], dtype=torch.float64)).tolist() == [50]
    assert table.probability(0) == 0.5


def test_accuracy_and_its_interval_respect_groups() -> None:
    margins = torch.tensor([1.0, -1.0] * 50)
    alone = accuracy(margins, [str(i) for i in range(100)])
    lumped = accuracy(margins, [str(i % 2) for i in range(100)])
    assert alone.accuracy == lumped.accuracy == 0.5
    assert lumped.ci_high - lumped.ci_low > alone.ci_high - alone.ci_low
    assert accuracy(torch.zeros(4), list("abcd")).accuracy == 0.5
    assert advantage(margins, margins, [str(i) for i in range(100)]).ci_high == 0


def test_a_calibrated_model_has_little_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(20_000, generator=generator)
    signs = torch.where(torch.rand(20_000, generator=generator) < torch.sigmoid(true), 1.0, -1.0)
    table = Calibration(1.0, *(torch.zeros(1),) * 3)
    assert calibration_error(true * signs, table) < 0.02
    assert calibration_error(true * signs * 8, table) > 0.1


def test_bundles_found_by_name(workshop: Settings) -> None:
    assert "sae" not in bundle.names(workshop.models_dir)
