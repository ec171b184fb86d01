"""Recipes: what they say is what sae_lens's registry says, and one walks from pairs to a served bundle."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from app import cli
from app.backbone import model_sources
from app.backbone.packing import pack
from app.data.pairs import read_pairs
from app.errors import SourceError
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from app.train import head_training, jobs, recipes
from app.train.recipes import Recipe
from app.train.sae import import_pretrained, training
from app.types import Item, ScoreOptions
from tests.support import tiny, tiny_saes
from tests.support.paths import MODELS
from tests.support.training_setup import quiet

KNOWN = [recipes.find_recipe(name, MODELS) for name in recipes.list_recipes(MODELS)]
PAPER = {"gemma-2-2b-it": 13, "gemma-2-9b-it": 31, "llama-3.1-8b-instruct": 15}
WIDTHS = {"16k": 2**14, "32k": 2**15, "65k": 2**16, "131k": 2**17}


@pytest.fixture(scope="module")
def registry() -> dict[str, Any]:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    found: dict[str, Any] = get_pretrained_saes_directory()
    return found


def id_of(recipe: Recipe) -> str:
    return recipe.name


@pytest.mark.parametrize("recipe", KNOWN, ids=id_of)
def test_every_recipe_is_in_the_registry(recipe: Recipe, registry: dict[str, Any]) -> None:
    said, listed = recipe.sae, registry[recipe.sae.release]
    assert said.id in listed.saes_map
    assert (listed.neuronpedia_id[said.id] or "") == said.neuronpedia
    assert listed.conversion_func in LOADERS
    kinds, hook = LOADERS[listed.conversion_func]
    block = re.search(r"(?:layer_?|^l|blocks\.)(\d+)", said.id)
    assert block
    assert said.hook == hook.format(block[1])
    assert said.kind == kinds
    assert said.layer == int(block[1]) + said.hook.endswith("post") <= recipe.layers
    if said.neuronpedia:
        model, _, source = said.neuronpedia.partition("/")
        assert source.startswith(f"{block[1]}-")
        assert told(model) & told(recipe.backbone.rpartition("/")[2])


@pytest.mark.parametrize("recipe", KNOWN, ids=id_of)
def test_its_sizes_are_those_in_its_makers_names(recipe: Recipe, registry: dict[str, Any]) -> None:
    from sae_lens.loading import pretrained_sae_loaders as loaders

    said, repository = recipe.sae, registry[recipe.sae.release].repo_id
    named = f"{said.id} {said.neuronpedia}"
    if width := re.search(r"\b(?:width_|res-|att-)(\d+k)|_width_(\d+k)", named):
        assert said.latents == WIDTHS[width[1] or width[2]]
    if times := re.search(r"(\d+)x$", said.id):
        assert said.latents == int(times[1]) * said.inputs
    if found := re.search(r"SAE-Res-(.+)-W", repository):
        _, latents, most = loaders._parse_qwen_scope_repo_id(repository)  # noqa: SLF001 # the name is all there is
        assert (said.latents, said.inputs) == (latents, loaders.QWEN_SCOPE_MODEL_INFO[found[1]][1])
        assert most > 0
    if "gemma-scope-2b" in repository or "gemma-scope-9b" in repository or "gemma-scope-27b" in repository:
        config = loaders.get_gemma_2_config_from_hf(
            repository, registry[said.release].saes_map[said.id], "cpu"
        )
        shown = (config["hook_name"], config["d_in"], config["d_sae"])
        assert shown == (said.hook, said.inputs, said.latents)


def told(name: str) -> set[str]:
    """The sizes in a model's name."""
    return set(re.findall(r"\d+(?:\.\d+)?[bm]\b", name.lower()))


LOADERS = {
    "gemma_2": ("jumprelu", "blocks.{}.hook_resid_post"),
    "gemma_3": ("jumprelu", "blocks.{}.hook_resid_post"),
    "llama_scope": ("jumprelu", "blocks.{}.hook_resid_post"),
    "dictionary_learning_1": ("jumprelu", "blocks.{}.hook_resid_post"),
    "goodfire": ("standard", "blocks.{}.hook_resid_post"),
    "deepseek_r1": ("standard", "blocks.{}.hook_resid_post"),
    "qwen_scope": ("topk", "blocks.{}.hook_resid_post"),
    None: ("standard", "blocks.{}.hook_resid_pre"),  # the registry's own format, whose ids are hooks
}


def test_the_paper_s_models_are_among_them_at_its_layers() -> None:
    found = {recipe.name: recipe.sae.layer - 1 for recipe in KNOWN}
    assert {name: found[name] for name in PAPER} == PAPER


def test_the_page_lists_them_all() -> None:
    page = (MODELS.parent / "docs" / "recipes.md").read_text()
    for one in KNOWN:
        place, size = f"{one.sae.layer} of {one.layers}", f"{one.sae.latents:,} | {one.sae.kind}"
        assert (
            f"| {one.name} | {one.backbone} | {place} | {one.sae.release} {one.sae.id} | {size} |\n" in page
        )


def test_the_command_names_them_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_MODELS_DIR", str(MODELS))
    shown = CliRunner().invoke(cli.app, ["recipes"], env={"COLUMNS": "80"}).output
    assert all(f"{one.name} " in shown for one in KNOWN)


def test_a_hook_is_before_or_after_its_block() -> None:
    said = KNOWN[0].sae
    hooks = {"blocks.7.hook_resid_post": 8, "blocks.7.hook_resid_pre": 7}
    assert {hook: replace(said, hook=hook).layer for hook in hooks} == hooks
    for other in ("blocks.7.hook_mlp_out", "blocks.7.attn.hook_z", "hook_embed"):
        with pytest.raises(SourceError, match="does not read the residual stream"):
            assert replace(said, hook=other).layer


def test_a_recipe_that_is_unknown_or_says_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no recipe 'gemma-9'.*one of none"):
        recipes.find_recipe("gemma-9", tmp_path)
    file = tmp_path / "odd.toml"
    for text in ("hook = 1", 'about = "', "about = [1]"):
        file.write_text(text)
        with pytest.raises(SourceError, match=r"odd\.toml"):
            recipes.find_recipe(str(file), tmp_path)


@pytest.fixture
def shop(tmp_path: Path) -> Settings:
    """Models and a cache of one's own."""
    return tiny.make_settings(tmp_path)


def written(folder: Path, backbone: Path | str, source: dict[str, str], kind: str) -> str:
    """A recipe as a user would write it."""
    facts = {**source, "hook": tiny_saes.HOOK, "kind": kind, "neuronpedia": "toy/2-res"}
    lines = [f'{name} = "{value}"' for name, value in facts.items()]
    text = f'about = "toy"\nlicense = "CC0"\nbackbone = "{backbone}"\nlayers = {tiny.LAYERS}\n\n[sae]\n'
    file = folder / "toy.toml"
    file.write_text(
        text + "\n".join([*lines, f"inputs = {tiny.WIDTH}", f"latents = {tiny_saes.LATENTS}"]) + "\n"
    )
    return str(file)


def trained(file: str, training_settings: Settings, shop: Settings) -> dict[str, Any]:
    """A bundle by a recipe, and its report."""
    root, recipe = training_settings.models_dir.parent, recipes.find_recipe(file, shop.models_dir)
    order = jobs.build_training_config(
        "liked", str(root / "pairs.jsonl"), None, terms="CC0", sae=recipe, bad=None,
        k=16, limit=120, plan=head_training.HeadTrainingConfig(heads=2, hidden=16),
    )  # fmt: skip
    jobs.train_and_save(order, recipe, shop, quiet)
    report: dict[str, Any] = json.loads((shop.models_dir / "liked" / "report.json").read_text())
    return report


@pytest.mark.parametrize(("kind", "normalised"), [("jumprelu", "constant_norm_rescale"), ("topk", "none")])
def test_a_recipe_ends_in_a_bundle_that_serves(
    kind: str, normalised: str, training_settings: Settings, shop: Settings, tmp_path: Path
) -> None:
    root = training_settings.models_dir.parent
    theirs = tiny_saes.on_disk(tmp_path / "theirs", kind, normalize_activations=normalised)
    file = written(tmp_path, root / "backbone", {"folder": str(theirs)}, kind)
    report = trained(file, training_settings, shop)
    engine = loading.load_engine(shop, quiet)
    engine.verify()
    model = engine.models["liked"]
    assert (model.card.sae, model.card.layer) == ("toy", tiny.LAYERS - 1)
    assert model.features[0].url == f"https://www.neuronpedia.org/toy/2-res/{model.features[0].latent}"
    assert report["sae"]["kind"] == kind
    firing = report["sae"].get("firing")
    text = (shop.models_dir / "liked" / "report.md").read_text()
    assert (firing is not None) == (kind == "topk") == ("largest latents of each token" in text)
    asked = [one for pair in read_pairs(root / "test.jsonl")[:40] for one in pair.items]
    scores = [score for (score,) in tiny.score_items(engine, asked, ScoreOptions(("liked",), top_k=32))]
    rewards = torch.tensor([score.reward for score in scores]).view(-1, 2)
    assert (rewards[:, 0] > rewards[:, 1]).float().mean() > 0.8
    shown, *_ = scores
    latents = [one.feature.latent for one in shown.features]
    full = training.load_sae(next((shop.cache / "saes").glob("*/toy"))).independent_latents()
    residuals = residual_rows(engine, asked[0], model.card.layer)
    expected = full.encode(residuals).mean(0)[latents]
    assert torch.allclose(torch.tensor([one.activation for one in shown.features]), expected, atol=1e-5)


def residual_rows(engine: Engine, exchange: Item, layer: int) -> torch.Tensor:
    (encoded,) = engine.encode([exchange])
    return tiny.compute_residuals(engine.backbone, pack([encoded.ids]), layer)[
        encoded.response_start : encoded.response_end
    ]


def test_what_was_adopted_is_adopted_once(
    training_settings: Settings, shop: Settings, tmp_path: Path
) -> None:
    root = training_settings.models_dir.parent
    theirs = tiny_saes.on_disk(tmp_path / "theirs", "topk")
    recipe = recipes.find_recipe(
        written(tmp_path, root / "backbone", {"folder": str(theirs)}, "topk"), tmp_path
    )
    pairs = read_pairs(root / "pairs.jsonl")
    first = import_pretrained.import_pretrained_sae(recipe, pairs, "a", shop, quiet)
    before = (first / training.WEIGHTS).stat().st_mtime_ns
    assert import_pretrained.import_pretrained_sae(recipe, pairs, "a", shop, quiet) == first
    assert (first / training.WEIGHTS).stat().st_mtime_ns == before
    assert import_pretrained.import_pretrained_sae(recipe, pairs, "b", shop, quiet) != first


@pytest.mark.parametrize("what", ["hook", "kind", "inputs", "latents"])
def test_an_sae_that_is_not_the_recipe_s_is_refused(
    what: str, training_settings: Settings, shop: Settings, tmp_path: Path
) -> None:
    theirs = tiny_saes.on_disk(tmp_path / "theirs", "jumprelu")
    folder = training_settings.models_dir.parent / "backbone"
    recipe = recipes.find_recipe(written(tmp_path, folder, {"folder": str(theirs)}, "jumprelu"), tmp_path)
    wrong: Any = {"hook": "blocks.1.hook_resid_post", "kind": "gated", "inputs": 65, "latents": 12}
    other = replace(recipe, sae=replace(recipe.sae, **{what: wrong[what]}))
    with pytest.raises(SourceError, match=f"the recipe says {what} {wrong[what]}, its SAE has"):
        import_pretrained.import_pretrained_sae(other, [], "", shop, quiet)
    assert not list((shop.cache / "saes").rglob("*.json"))


def in_the_hub(cache: Path, name: str, commit: str) -> Path:
    """Where a repository's files lie in the hub's cache, `main` being at a commit."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


def test_hub_names_are_pinned_when_first_used(
    shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, hub = "c" * 40, tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    tiny.save_backbone(in_the_hub(hub, "org/name", commit))
    tiny_saes.on_disk(in_the_hub(hub, "org/saes", "d" * 40) / "third", "gated")
    recipe = recipes.find_recipe(
        written(tmp_path, "org/name", {"release": "org/saes", "id": "third"}, "gated"), tmp_path
    )
    folder = import_pretrained.import_pretrained_sae(recipe, [], "", shop, quiet)
    facts = json.loads((folder / "provenance.json").read_text())
    assert (facts["backbone"], facts["backbone_digest"]) == (f"org/name@{commit}", f"hub:org/name@{commit}")
    assert (facts["release"], facts["id"], facts["layer"]) == ("org/saes", "third", tiny.LAYERS - 1)
    reader = jobs.load_feature_extractor(folder, shop, quiet)
    assert reader.backbone.name == f"org/name@{commit}"
    assert model_sources.pin_revision(f"org/name@{commit}", tmp_path) == f"org/name@{commit}"
    with pytest.raises(SourceError, match="cannot fetch org/other at its newest commit"):
        model_sources.pin_revision("org/other", tmp_path)
    for release, name in (
        ("org/saes", "fourth"),
        ("no-such-release", "third"),
        ("gemma-scope-2b-pt-res", "x"),
    ):
        with pytest.raises(SourceError, match=f"cannot fetch the SAE '{name}' of {release}"):
            training.fetch_sae(release, name)


def test_an_sae_of_another_width_is_refused(
    training_settings: Settings, shop: Settings, tmp_path: Path
) -> None:
    theirs = tiny_saes.on_disk(tmp_path / "theirs", "jumprelu", d_in=48)
    file = written(
        tmp_path, training_settings.models_dir.parent / "backbone", {"folder": str(theirs)}, "jumprelu"
    )
    recipe = recipes.find_recipe(file, tmp_path)
    folder = import_pretrained.import_pretrained_sae(
        replace(recipe, sae=replace(recipe.sae, inputs=48)), [], "", shop, quiet
    )
    with pytest.raises(SourceError, match="reads 48 numbers, not 64"):
        jobs.load_feature_extractor(folder, shop, quiet)
