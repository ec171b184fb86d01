"""Names of a public SAE's latents from Neuronpedia; they are tested like any other names.

Explanations come from the export of one SAE (https://www.neuronpedia.org/api/explanation/export), or from
files of it: a JSON list, or JSON lines that may be compressed. A row needs `index` and `description`.
"""

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx

from app.errors import SourceError
from app.reward.reward_model import RewardModel

EXPORT_URL = "https://www.neuronpedia.org/api/explanation/export"
TIMEOUT_S = 300.0
MAX_BYTES = 2 * 2**30
MAX_NAME_CHARACTERS = 120


def find_neuronpedia_path(model: RewardModel) -> tuple[str, str]:
    """Return the model and the SAE on Neuronpedia that a model's features link to."""
    for feature in model.features:
        parts = urlparse(feature.url or "").path.strip("/").split("/")
        if len(parts) == 3:  # model, SAE and latent
            return parts[0], parts[1]
    raise SourceError(
        f"{model.card.name}: its features have no pages on Neuronpedia; names from there are for models of "
        "public SAEs (`sparserm train --recipe`)"
    )


def fetch_names(model: RewardModel, client: httpx.Client) -> dict[int, str]:
    """Download the explanations of a model's SAE; return those of its features by latent."""
    backbone, sae = find_neuronpedia_path(model)
    try:
        response = client.get(EXPORT_URL, params={"modelId": backbone, "saeId": sae}, follow_redirects=True)
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise SourceError(
            f"{EXPORT_URL}: {error}; download the files and give them with --file instead"
        ) from error
    return select_names(model, _parse(response.content, EXPORT_URL))


def read_names(model: RewardModel, files: Sequence[Path]) -> dict[int, str]:
    """Return the names of a model's features by latent, from files of an export."""
    names: dict[int, str] = {}
    for file in files:
        if file.stat().st_size > MAX_BYTES:
            raise SourceError(f"{file}: larger than {MAX_BYTES // 2**30} GiB")
        content = file.read_bytes()
        if file.suffix == ".gz":
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError) as error:
                raise SourceError(f"{file}: not a gzip file: {error}") from error
        names = select_names(model, _parse(content, str(file))) | names
    return names


def select_names(model: RewardModel, rows: Iterable[Any]) -> dict[int, str]:
    """Return the first explanation of each of the model's latents, as a name of one line."""
    names: dict[int, str] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("description"), str):
            continue
        index = str(row.get("index", ""))
        description = " ".join(row["description"].split())[:MAX_NAME_CHARACTERS]
        if index.isdecimal() and int(index) in model.index_by_latent and description:
            names.setdefault(int(index), description)
    return names


def _parse(content: bytes, source: str) -> list[Any]:
    """Return the rows of a JSON list or of JSON lines."""
    try:
        if content.lstrip()[:1] == b"[":
            rows = json.loads(content)
            return rows if isinstance(rows, list) else []
        return [json.loads(line) for line in content.splitlines() if line.strip()]
    except ValueError as error:
        raise SourceError(f"{source}: not an export of explanations: {error}") from error
