"""Names from Neuronpedia: its export as a JSON list, as JSON lines and compressed, and a download."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import SourceError
from app.reward.engine import Engine
from app.reward.reward_model import RewardModel
from app.train.names import neuronpedia


@pytest.fixture
def public_model(engine: Engine) -> RewardModel:
    """A model whose features link to pages of an SAE on Neuronpedia."""
    model = engine.models["alpha"]
    page = "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k"
    return replace(model, features=tuple(replace(f, url=f"{page}/{f.latent}") for f in model.features))


def export_rows(model: RewardModel) -> list[dict[str, Any]]:
    """Return rows with the fields of an export of explanations."""
    latents = [feature.latent for feature in model.features]
    rows = [
        {
            "modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": str(latent),
            "description": f" names of rivers\n {latent} ", "typeName": "oai_token-act-pair",
            "explanationModelName": "gpt-4o-mini",
        }
        for latent in (*latents, max(latents) + 1)
    ]  # fmt: skip
    return [*rows, {**rows[0], "description": "a later one"}, {"index": "1"}]


def test_the_export_of_an_sae_is_downloaded(public_model: RewardModel) -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json=export_rows(public_model))

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        names = neuronpedia.fetch_names(public_model, client)
    assert dict(requests[0].url.params) == {"modelId": "gemma-2-2b", "saeId": "20-gemmascope-res-16k"}
    assert names == {f.latent: f"names of rivers {f.latent}" for f in public_model.features}


@pytest.mark.parametrize("form", ["list", "lines", "compressed"])
def test_files_of_an_export_are_read(public_model: RewardModel, tmp_path: Path, form: str) -> None:
    rows = export_rows(public_model)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    file = tmp_path / ("batch-0.jsonl.gz" if form == "compressed" else "export.json")
    content = json.dumps(rows).encode() if form == "list" else lines.encode()
    file.write_bytes(gzip.compress(content) if form == "compressed" else content)
    names = neuronpedia.read_names(public_model, [file])
    assert names.keys() == public_model.index_by_latent.keys()


def test_failures_name_the_remedy(public_model: RewardModel, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no pages on Neuronpedia"):
        neuronpedia.find_neuronpedia_path(engine.models["alpha"])
    with (
        httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(500))) as client,
        pytest.raises(SourceError, match="--file"),
    ):
        neuronpedia.fetch_names(public_model, client)
    for name, content in (("a.json", b"{x"), ("a.jsonl.gz", b"not gzip")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=name):
            neuronpedia.read_names(public_model, [tmp_path / name])
