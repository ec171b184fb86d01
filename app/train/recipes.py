"""Recipes: which backbone and which pretrained SAE of it a reward model is trained on, as TOML files."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.errors import SourceError
from app.types import FORBID_EXTRA

LAYERS_AFTER_BLOCK = {r"blocks\.(\d+)\.hook_resid_post": 1, r"blocks\.(\d+)\.hook_resid_pre": 0}
"""Hooks that can be read, as patterns, and what to add to the block number to get the layer."""


@dataclass(frozen=True, slots=True)
class PretrainedSae:
    """An SAE as its authors describe it: of a release of sae_lens's registry, or in a local folder.

    `hook` is the point in the backbone that it encodes, `inputs` and `latents` are its sizes, and
    `neuronpedia` is its path on neuronpedia.org. The fields are the keys of a recipe's [sae] table.
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
        """The number of layers before the residuals it encodes. Block numbers start at 0, layers at 1."""
        for pattern, offset in LAYERS_AFTER_BLOCK.items():
            if match := re.fullmatch(pattern, self.hook):
                return int(match[1]) + offset
        raise SourceError(f"an SAE of {self.hook!r} does not read the residual stream between layers")

    @property
    def size_bytes(self) -> int:
        """The size of its weights in float32."""
        return 4 * (2 * self.inputs * self.latents + 2 * self.latents + self.inputs)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A backbone, its number of layers, and an SAE of it; a hub backbone may be pinned by @commit."""

    __pydantic_config__ = FORBID_EXTRA
    name: str
    about: str
    license: str
    backbone: str
    layers: int
    sae: PretrainedSae


def list_recipes(models_dir: Path) -> list[str]:
    """Return the names of the recipes in models/recipes/."""
    return sorted(file.stem for file in (models_dir / "recipes").glob("*.toml"))


def find_recipe(name: str, models_dir: Path) -> Recipe:
    """Load a recipe by name, or by the path of a .toml file."""
    file = Path(name) if name.endswith(".toml") else models_dir / "recipes" / f"{name}.toml"
    if not file.is_file():
        names = ", ".join(list_recipes(models_dir)) or "none"
        raise SourceError(f"no recipe {name!r}: use the path of a .toml file, or one of {names}")
    try:
        fields: dict[str, Any] = tomllib.loads(file.read_text())
        return TypeAdapter(Recipe).validate_python({"name": file.stem, **fields})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise SourceError(f"{file}: {error}") from error
