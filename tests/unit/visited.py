"""Imports modules as if only some packages were installed: `python -m tests.unit.visited MODULES PACKAGES`, each a list
with commas. What the packages need must be among them.

A process of its own, so that nothing is loaded yet.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Hiding:
    """A finder of modules that does not see those of other packages."""

    def __init__(self, finder: Any, packages: set[str]) -> None:
        self._finder, self._packages, self._owners = finder, packages, metadata.packages_distributions()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        owners = {normalised(owner) for owner in self._owners.get(name, ())}
        if owners and not owners & self._packages:
            return None
        found: ModuleSpec | None = self._finder.find_spec(name, path, target)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def main() -> None:
    modules, packages = (argument.split(",") for argument in sys.argv[1:])
    sys.meta_path[:] = [Hiding(finder, {*map(normalised, packages)}) for finder in sys.meta_path]
    for module in modules:
        importlib.import_module(module)


if __name__ == "__main__":
    main()
