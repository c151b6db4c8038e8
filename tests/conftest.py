"""Checkpoints that the tests share. Random weights of both sizes are made once and kept under `out/checkpoints`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chatterbox_engine import random_checkpoint
from chatterbox_engine.checkpoint import Checkpoint

_KEPT = Path(__file__).parents[1] / "out" / "checkpoints"


def pytest_configure(config: pytest.Config) -> None:
    # Upstream's imports: perth imports pkg_resources, and the flow is built of a class that diffusers will drop.
    config.addinivalue_line("filterwarnings", "ignore:pkg_resources is deprecated as an API:UserWarning")
    config.addinivalue_line("filterwarnings", "ignore:`LoRACompatibleLinear` is deprecated:FutureWarning")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    random_checkpoint.write_random_checkpoint(folder, "tiny")
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_path)


@pytest.fixture(scope="session")
def full_path() -> Path:
    """A folder with a full-size checkpoint of random weights (3.2 GB), kept between sessions."""
    folder = _KEPT / f"full-{random_checkpoint.FORMAT}"
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        random_checkpoint.write_random_checkpoint(partial, "full")
        partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def full(full_path: Path) -> Checkpoint:
    """The full-size checkpoint, opened. For tests marked `full`."""
    return Checkpoint.open(full_path)
