"""The engine's packages on floors: a module imports from its own package and from those below, never in a circle.

Imports inside of functions and under `TYPE_CHECKING` count as well: they are needed to read a module, if not to load
it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import chatterbox_engine

ROOT = Path(chatterbox_engine.__file__).parent

FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(floor.split())
    for floor in (
        "errors types environment",
        "kernels",
        "hardware metrics text checkpoint origins limits gpu_share",
        "presets t3 s3gen voices",
        "config synthesis",
        "memory_plan serving",
        "assemble launcher",
    )
)
"""Packages, and modules of the top folder, lowest first. Those of one floor do not know each other."""

WITHOUT_TORCH = (
    "presets",
    "config",
    "metrics",
    "voices.clips",
    "voices.store",
    "t3.extents",
    *(f"synthesis.{name}" for name in ("answers", "jobs", "register", "scheduler", "segments", "streaming")),
    "synthesis.utterances",
    "launcher.cli",
    "launcher.server",
    *sorted(f"serving.{path.stem}" for path in (ROOT / "serving").glob("*.py") if path.stem != "__init__"),
)
"""Load in milliseconds: what the streaming front, the voices' model, the launcher and quick tests use."""


def modules() -> dict[str, ast.Module]:
    """Every module by its name inside of the engine; a package by its folder's."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """The engine's modules that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("chatterbox_engine.") for name in names if name.startswith("chatterbox_engine.")}
    return {name if name in known else name.rpartition(".")[0] for name in inside}


MODULES = modules()
GRAPH = {name: imports(tree, set(MODULES)) for name, tree in MODULES.items()}


def floor_of(module: str) -> int:
    package = module.partition(".")[0]
    return next(number for number, floor in enumerate(FLOORS) if package in floor)


def test_every_package_has_its_floor() -> None:
    packages = [package for floor in FLOORS for package in floor]
    assert len(packages) == len(set(packages))
    assert set(packages) == {name.partition(".")[0] for name in MODULES if name}


def test_no_module_imports_from_its_own_floor_or_above() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if module.partition(".")[0] != other.partition(".")[0] and floor_of(other) >= floor_of(module)
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {module: set(others) for module, others in GRAPH.items()}
    while free := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in free}
    assert not left, "these are in a circle, or import one that is"


def test_light_modules_load_no_torch() -> None:
    code = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
"""
    names = [f"chatterbox_engine.{name}" for name in WITHOUT_TORCH]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
