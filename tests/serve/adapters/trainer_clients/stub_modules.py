"""Stubs for heavy packages that a trainer's module imports but that are not installed.

The tested code never calls them.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from unittest.mock import MagicMock


class StubModuleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Provides stub modules for some packages that no other finder finds."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".", maxsplit=1)[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__ = []
        return module

    def exec_module(self, _module: ModuleType) -> None:
        pass


def install_stub_modules(*names: str) -> None:
    """Make these packages importable."""
    sys.meta_path.append(StubModuleFinder(*names))
