"""Which backbone, where in it, and whose SAE: files a few lines long, by name or by path."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.errors import SourceError
from app.types import FORBID_EXTRA

HOOKS = {r"blocks\.(\d+)\.hook_resid_post": 1, r"blocks\.(\d+)\.hook_resid_pre": 0}


@dataclass(frozen=True, slots=True)
class PretrainedSae:
    """An SAE as its makers describe it: from a release, or a folder in sae_lens's format.

    `hook` is where it reads, `inputs` and `latents` its sizes, `neuronpedia` where its latents are shown.
    """

    __pydantic_config__ = FORBID_EXTRA
    hook: str
    kind: str
    inputs: int
    latents: int
    release: str = ""
    id: str = ""
    folder: str = ""
    neuronpedia: str = ""

    @property
    def layer(self) -> int:
        """How many layers come before its residuals: blocks count from 0, this from 1."""
        for pattern, more in HOOKS.items():
            if found := re.fullmatch(pattern, self.hook):
                return int(found[1]) + more
        raise SourceError(f"an SAE of {self.hook!r} does not read the residual stream between layers")

    @property
    def size_bytes(self) -> int:
        """Its weights in float32."""
        return 4 * (2 * self.inputs * self.latents + 2 * self.latents + self.inputs)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A backbone with so many layers, and an SAE of it; a hub backbone may be pinned by @commit."""

    __pydantic_config__ = FORBID_EXTRA
    name: str
    about: str
    license: str
    backbone: str
    layers: int
    sae: PretrainedSae


def list_recipes(models_dir: Path) -> list[str]:
    """The recipes known by name, from models/recipes/."""
    return sorted(file.stem for file in (models_dir / "recipes").glob("*.toml"))


def find_recipe(name: str, models_dir: Path) -> Recipe:
    """A recipe by name, or by the path of its file."""
    file = Path(name) if name.endswith(".toml") else models_dir / "recipes" / f"{name}.toml"
    if not file.is_file():
        known = ", ".join(list_recipes(models_dir)) or "none"
        raise SourceError(f"no recipe {name!r}: use the path of a .toml file, or one of {known}")
    try:
        said: dict[str, Any] = tomllib.loads(file.read_text())
        return TypeAdapter(Recipe).validate_python({"name": file.stem, **said})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise SourceError(f"{file}: {error}") from error
