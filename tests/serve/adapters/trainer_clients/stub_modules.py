"""Lets a trainer's module be imported where the heavy packages it mentions are absent; they stay hollow.

What is tested never calls them.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from unittest.mock import MagicMock


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds hollow modules under a few names, after everything else has looked."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".", maxsplit=1)[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        hollow = MagicMock(name=spec.name)
        hollow.__path__ = []
        return hollow

    def exec_module(self, _module: ModuleType) -> None:
        pass


def hollow(*names: str) -> None:
    """From now on these can be imported."""
    sys.meta_path.append(Absent(*names))
