"""Names of a public SAE's latents from Neuronpedia; they are tested like any other names.

Explanations come from the export of one SAE (https://www.neuronpedia.org/api/explanation/export), or from
files of it: a JSON list, or JSON lines that may be compressed. A row needs `index` and `description`.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx

from app.errors import SourceError
from app.reward.reward_model import RewardModel
from app.train.names.naming_sheet import MAX_NAME_CHARACTERS

HOST = "www.neuronpedia.org"
EXPORT_URL = f"https://{HOST}/api/explanation/export"
TIMEOUT_S = 300.0
MAX_BYTES = 2**30
"""Size of an export, after decompression, that is refused; those of large SAEs have some 100 MB."""
CHUNK_BYTES = 2**20


def find_neuronpedia_path(model: RewardModel) -> tuple[str, str]:
    """Return the model and the SAE on Neuronpedia that a model's features link to."""
    for feature in model.features:
        url = urlparse(feature.url or "")
        parts = url.path.strip("/").split("/")
        if url.hostname == HOST and len(parts) == 3:  # model, SAE and latent
            return parts[0], parts[1]
    raise SourceError(
        f"{model.card.name}: its features have no pages on Neuronpedia; names from there are for models of "
        "public SAEs (`sparserm train --recipe`)"
    )


def fetch_names(model: RewardModel, client: httpx.Client) -> dict[int, str]:
    """Download the explanations of a model's SAE; return those of its features by latent."""
    backbone, sae = find_neuronpedia_path(model)
    try:
        parameters = {"modelId": backbone, "saeId": sae}
        with client.stream("GET", EXPORT_URL, params=parameters, follow_redirects=True) as response:
            response.raise_for_status()
            content = _read_limited(response.iter_bytes(), EXPORT_URL)
    except httpx.HTTPError as error:
        raise SourceError(
            f"{EXPORT_URL}: {error}; download the files and give them with --file instead"
        ) from error
    return select_names(model, _parse(content, EXPORT_URL))


def read_names(model: RewardModel, files: Sequence[Path]) -> dict[int, str]:
    """Return the names of a model's features by latent, from files of an export."""
    names: dict[int, str] = {}
    for file in files:
        open_file = gzip.open if file.suffix == ".gz" else open
        try:
            with open_file(file, "rb") as stream:
                content = _read_limited(iter(lambda: stream.read(CHUNK_BYTES), b""), str(file))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
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


def _read_limited(chunks: Iterator[bytes], source: str) -> bytes:
    """Return all chunks; raise SourceError if they are more than MAX_BYTES."""
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > MAX_BYTES:
            raise SourceError(f"{source}: larger than {MAX_BYTES // 2**30} GiB")
    return bytes(content)


def _parse(content: bytes, source: str) -> list[Any]:
    """Return the rows of a JSON list or of JSON lines."""
    try:
        if content.lstrip()[:1] == b"[":
            rows = json.loads(content)
            return rows if isinstance(rows, list) else []
        return [json.loads(line) for line in content.split(b"\n") if line.strip()]
    except ValueError as error:
        raise SourceError(f"{source}: not an export of explanations: {error}") from error
