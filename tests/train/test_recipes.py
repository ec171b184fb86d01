"""Recipes agree with sae_lens's registry, and training with one ends in a bundle that is served."""

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
from app.train import jobs, recipes
from app.train.head.network import NetworkHeadConfig
from app.train.recipes import Recipe
from app.train.sae import import_pretrained, training
from app.types import Item, ScoreOptions
from tests.support import tiny, tiny_saes
from tests.support.paths import MODELS
from tests.support.training_setup import ignore_progress

RECIPES = [recipes.find_recipe(name, MODELS) for name in recipes.list_recipes(MODELS)]
PAPER_BLOCKS = {"gemma-2-2b-it": 13, "gemma-2-9b-it": 31, "llama-3.1-8b-instruct": 15}
WIDTHS = {"16k": 2**14, "32k": 2**15, "65k": 2**16, "131k": 2**17}


@pytest.fixture(scope="module")
def registry() -> dict[str, Any]:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory: dict[str, Any] = get_pretrained_saes_directory()
    return directory


def get_name(recipe: Recipe) -> str:
    return recipe.name


@pytest.mark.parametrize("recipe", RECIPES, ids=get_name)
def test_every_recipe_is_in_the_registry(recipe: Recipe, registry: dict[str, Any]) -> None:
    sae, release = recipe.sae, registry[recipe.sae.release]
    assert sae.id in release.saes_map
    assert (release.neuronpedia_id[sae.id] or "") == sae.neuronpedia
    assert release.conversion_func in LOADERS
    kind, hook = LOADERS[release.conversion_func]
    block = re.search(r"(?:layer_?|^l|blocks\.)(\d+)", sae.id)
    assert block
    assert sae.hook == hook.format(block[1])
    assert sae.kind == kind
    assert sae.layer == int(block[1]) + sae.hook.endswith("post") <= recipe.layers
    if sae.neuronpedia:
        model, _, source = sae.neuronpedia.partition("/")
        assert source.startswith(f"{block[1]}-")
        assert sizes_in_name(model) & sizes_in_name(recipe.backbone.rpartition("/")[2])


@pytest.mark.parametrize("recipe", RECIPES, ids=get_name)
def test_sizes_of_a_recipe_agree_with_the_names_of_its_sae(recipe: Recipe, registry: dict[str, Any]) -> None:
    from sae_lens.loading import pretrained_sae_loaders as loaders

    sae, repository = recipe.sae, registry[recipe.sae.release].repo_id
    names = f"{sae.id} {sae.neuronpedia}"
    if width := re.search(r"\b(?:width_|res-|att-)(\d+k)|_width_(\d+k)", names):
        assert sae.latents == WIDTHS[width[1] or width[2]]
    if factor := re.search(r"(\d+)x$", sae.id):
        assert sae.latents == int(factor[1]) * sae.inputs
    if match := re.search(r"SAE-Res-(.+)-W", repository):
        _, latents, top_k = loaders._parse_qwen_scope_repo_id(repository)  # noqa: SLF001 # sae_lens has no public function
        assert (sae.latents, sae.inputs) == (latents, loaders.QWEN_SCOPE_MODEL_INFO[match[1]][1])
        assert top_k > 0
    if "gemma-scope-2b" in repository or "gemma-scope-9b" in repository or "gemma-scope-27b" in repository:
        config = loaders.get_gemma_2_config_from_hf(repository, registry[sae.release].saes_map[sae.id], "cpu")
        downloaded = (config["hook_name"], config["d_in"], config["d_sae"])
        assert downloaded == (sae.hook, sae.inputs, sae.latents)


def sizes_in_name(name: str) -> set[str]:
    """Return the numbers of parameters in a model's name."""
    return set(re.findall(r"\d+(?:\.\d+)?[bm]\b", name.lower()))


LOADERS = {
    "gemma_2": ("jumprelu", "blocks.{}.hook_resid_post"),
    "gemma_3": ("jumprelu", "blocks.{}.hook_resid_post"),
    "llama_scope": ("jumprelu", "blocks.{}.hook_resid_post"),
    "dictionary_learning_1": ("jumprelu", "blocks.{}.hook_resid_post"),
    "goodfire": ("standard", "blocks.{}.hook_resid_post"),
    "deepseek_r1": ("standard", "blocks.{}.hook_resid_post"),
    "qwen_scope": ("topk", "blocks.{}.hook_resid_post"),
    None: ("standard", "blocks.{}.hook_resid_pre"),  # the registry's own format, in which ids are hooks
}


def test_recipes_include_the_models_and_layers_of_the_paper() -> None:
    blocks = {recipe.name: recipe.sae.layer - 1 for recipe in RECIPES}
    assert {name: blocks[name] for name in PAPER_BLOCKS} == PAPER_BLOCKS


def test_every_recipe_is_documented() -> None:
    page = (MODELS.parent / "docs" / "recipes.md").read_text()
    for recipe in RECIPES:
        sae = recipe.sae
        columns = (
            recipe.name, recipe.backbone, f"{sae.layer} of {recipe.layers}", f"{sae.release} {sae.id}",
            f"{sae.latents:,}", sae.kind,
        )  # fmt: skip
        assert f"| {' | '.join(columns)} |\n" in page


def test_the_command_lists_full_names_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_MODELS_DIR", str(MODELS))
    output = CliRunner().invoke(cli.app, ["recipes"], env={"COLUMNS": "80"}).output
    assert all(f"{recipe.name} " in output for recipe in RECIPES)


def test_the_layer_of_a_hook_is_before_or_after_its_block() -> None:
    sae = RECIPES[0].sae
    hooks = {"blocks.7.hook_resid_post": 8, "blocks.7.hook_resid_pre": 7}
    assert {hook: replace(sae, hook=hook).layer for hook in hooks} == hooks
    for other in ("blocks.7.hook_mlp_out", "blocks.7.attn.hook_z", "hook_embed"):
        with pytest.raises(SourceError, match="does not read the residual stream"):
            assert replace(sae, hook=other).layer


def test_rejects_unknown_recipes_and_invalid_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no recipe 'gemma-9'.*one of none"):
        recipes.find_recipe("gemma-9", tmp_path)
    file = tmp_path / "invalid.toml"
    for text in ("hook = 1", 'about = "', "about = [1]"):
        file.write_text(text)
        with pytest.raises(SourceError, match=r"invalid\.toml"):
            recipes.find_recipe(str(file), tmp_path)


@pytest.fixture
def own_settings(tmp_path: Path) -> Settings:
    """Settings with models and a cache of the test's own."""
    return tiny.make_settings(tmp_path)


def write_recipe(folder: Path, backbone: Path | str, source: dict[str, str], kind: str) -> str:
    """Write a recipe file as a user would; return its path."""
    fields = {**source, "hook": tiny_saes.HOOK, "kind": kind, "neuronpedia": "toy/2-res"}
    lines = [f'{name} = "{value}"' for name, value in fields.items()]
    text = f'about = "toy"\nlicense = "CC0"\nbackbone = "{backbone}"\nlayers = {tiny.LAYERS}\n\n[sae]\n'
    file = folder / "toy.toml"
    file.write_text(
        text + "\n".join([*lines, f"inputs = {tiny.WIDTH}", f"latents = {tiny_saes.LATENTS}"]) + "\n"
    )
    return str(file)


def train_with_recipe(file: str, training_settings: Settings, own_settings: Settings) -> dict[str, Any]:
    """Train a model with a recipe; return its report."""
    root, recipe = training_settings.models_dir.parent, recipes.find_recipe(file, own_settings.models_dir)
    config = jobs.build_training_config(
        "liked", str(root / "pairs.jsonl"), None, data_license="CC0", source=recipe, on_bad_row=None,
        k=16, max_pairs=120, head=NetworkHeadConfig(heads=2, hidden=16),
    )  # fmt: skip
    jobs.train_and_save(config, recipe, own_settings, ignore_progress)
    report: dict[str, Any] = json.loads((own_settings.models_dir / "liked" / "report.json").read_text())
    return report


@pytest.mark.parametrize(("kind", "normalised"), [("jumprelu", "constant_norm_rescale"), ("topk", "none")])
def test_training_with_a_recipe_ends_in_a_served_bundle(
    kind: str, normalised: str, training_settings: Settings, own_settings: Settings, tmp_path: Path
) -> None:
    root = training_settings.models_dir.parent
    theirs = tiny_saes.write_sae(tmp_path / "theirs", kind, normalize_activations=normalised)
    file = write_recipe(tmp_path, root / "backbone", {"folder": str(theirs)}, kind)
    report = train_with_recipe(file, training_settings, own_settings)
    engine = loading.load_engine(own_settings, ignore_progress)
    engine.verify()
    model = engine.models["liked"]
    assert (model.card.sae, model.card.layer) == ("toy", tiny.LAYERS - 1)
    assert model.features[0].url == f"https://www.neuronpedia.org/toy/2-res/{model.features[0].latent}"
    assert report["sae"]["kind"] == kind
    firing = report["sae"].get("firing")
    text = (own_settings.models_dir / "liked" / "report.md").read_text()
    assert (firing is not None) == (kind == "topk") == ("largest latents of each token" in text)
    items = [item for pair in read_pairs(root / "test.jsonl")[:40] for item in pair.items]
    scores = [score for (score,) in tiny.score_items(engine, items, ScoreOptions(("liked",), top_k=32))]
    rewards = torch.tensor([score.reward for score in scores]).view(-1, 2)
    assert (rewards[:, 0] > rewards[:, 1]).float().mean() > 0.8
    score, *_ = scores
    latents = [contribution.feature.latent for contribution in score.features]
    dictionary = training.load_sae(next((own_settings.cache / "saes").glob("*/toy"))).independent_latents()
    residuals = compute_response_residuals(engine, items[0], model.card.layer)
    expected = dictionary.encode(residuals).mean(0)[latents]
    assert torch.allclose(
        torch.tensor([contribution.activation for contribution in score.features]), expected, atol=1e-5
    )


def compute_response_residuals(engine: Engine, item: Item, layer: int) -> torch.Tensor:
    (encoded,) = engine.encode([item])
    return tiny.compute_residuals(engine.backbone, pack([encoded.ids]), layer)[
        encoded.response_start : encoded.response_end
    ]


def test_an_imported_sae_is_reused(
    training_settings: Settings, own_settings: Settings, tmp_path: Path
) -> None:
    root = training_settings.models_dir.parent
    theirs = tiny_saes.write_sae(tmp_path / "theirs", "topk")
    recipe = recipes.find_recipe(
        write_recipe(tmp_path, root / "backbone", {"folder": str(theirs)}, "topk"), tmp_path
    )
    pairs = read_pairs(root / "pairs.jsonl")
    first = import_pretrained.import_pretrained_sae(recipe, pairs, "a", own_settings, ignore_progress)
    before = (first / training.WEIGHTS_FILE).stat().st_mtime_ns
    assert import_pretrained.import_pretrained_sae(recipe, pairs, "a", own_settings, ignore_progress) == first
    assert (first / training.WEIGHTS_FILE).stat().st_mtime_ns == before
    assert import_pretrained.import_pretrained_sae(recipe, pairs, "b", own_settings, ignore_progress) != first


@pytest.mark.parametrize("field", ["hook", "kind", "inputs", "latents"])
def test_rejects_an_sae_that_differs_from_the_recipe(
    field: str, training_settings: Settings, own_settings: Settings, tmp_path: Path
) -> None:
    theirs = tiny_saes.write_sae(tmp_path / "theirs", "jumprelu")
    folder = training_settings.models_dir.parent / "backbone"
    recipe = recipes.find_recipe(
        write_recipe(tmp_path, folder, {"folder": str(theirs)}, "jumprelu"), tmp_path
    )
    wrong: Any = {"hook": "blocks.1.hook_resid_post", "kind": "gated", "inputs": 65, "latents": 12}
    other = replace(recipe, sae=replace(recipe.sae, **{field: wrong[field]}))
    with pytest.raises(SourceError, match=f"the recipe says {field} {wrong[field]}, its SAE has"):
        import_pretrained.import_pretrained_sae(other, [], "", own_settings, ignore_progress)
    assert not list((own_settings.cache / "saes").rglob("*.json"))


def make_hub_folder(cache: Path, name: str, commit: str) -> Path:
    """Return the folder of a repository in the hub's cache, after creating its `main` reference."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


def test_hub_backbones_are_pinned_to_a_commit_when_first_used(
    own_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, hub = "c" * 40, tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    tiny.save_backbone(make_hub_folder(hub, "org/name", commit))
    tiny_saes.write_sae(make_hub_folder(hub, "org/saes", "d" * 40) / "third", "gated")
    recipe = recipes.find_recipe(
        write_recipe(tmp_path, "org/name", {"release": "org/saes", "id": "third"}, "gated"), tmp_path
    )
    folder = import_pretrained.import_pretrained_sae(recipe, [], "", own_settings, ignore_progress)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert (provenance["backbone"], provenance["backbone_digest"]) == (
        f"org/name@{commit}",
        f"hub:org/name@{commit}",
    )
    assert (provenance["release"], provenance["id"], provenance["layer"]) == (
        "org/saes",
        "third",
        tiny.LAYERS - 1,
    )
    extractor = jobs.load_feature_extractor(folder, own_settings, ignore_progress)
    assert extractor.backbone.name == f"org/name@{commit}"
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


def test_rejects_an_sae_of_another_width(
    training_settings: Settings, own_settings: Settings, tmp_path: Path
) -> None:
    theirs = tiny_saes.write_sae(tmp_path / "theirs", "jumprelu", d_in=48)
    file = write_recipe(
        tmp_path, training_settings.models_dir.parent / "backbone", {"folder": str(theirs)}, "jumprelu"
    )
    recipe = recipes.find_recipe(file, tmp_path)
    folder = import_pretrained.import_pretrained_sae(
        replace(recipe, sae=replace(recipe.sae, inputs=48)), [], "", own_settings, ignore_progress
    )
    with pytest.raises(SourceError, match=r"encodes residuals of size 48, but those of .* have size 64"):
        jobs.load_feature_extractor(folder, own_settings, ignore_progress)
