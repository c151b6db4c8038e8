"""Checkpoints that the tests share. Random weights of both sizes are made once and kept under `out/checkpoints`."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatterbox_engine.checkpoint import random_checkpoint
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from tests.postgres import Postgres, find_binaries, install, sql

_KEPT = Path(__file__).parents[1] / "out" / "checkpoints"


def pytest_configure(config: pytest.Config) -> None:
    # Answers are compared with each other to 1e-4, on processors with and without bfloat16. Servers inherit this.
    os.environ["CHATTERBOX_DTYPE"] = "float32"
    # Loading the encoders takes a core for ten seconds, which most servers of tests never need.
    os.environ["CHATTERBOX_PRELOAD_ENCODERS"] = "0"
    # Upstream's imports: perth imports pkg_resources, and the flow is built of a class that diffusers will drop.
    config.addinivalue_line("filterwarnings", "ignore:pkg_resources is deprecated as an API:UserWarning")
    config.addinivalue_line("filterwarnings", "ignore:`LoRACompatibleLinear` is deprecated:FutureWarning")


CheckpointOf = Callable[[str], Checkpoint]


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """The checkpoint of random weights called `tiny`, `tiny-turbo` or (for tests marked `full`) `full`, `full-nano` ...
    All have a built-in voice.

    Full-size ones (English: 3.2 GB) are kept between sessions.
    """
    tiny = tmp_path_factory.mktemp("checkpoint")

    def get(name: str) -> Checkpoint:
        full = name.startswith("full")
        folder = _KEPT / f"{name}-{random_checkpoint.FORMAT}" if full else tiny / name
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            family = random_checkpoint.TINY[name.replace("full", "tiny")]
            size: random_checkpoint.Size = "full" if full else "tiny"
            random_checkpoint.write_random_checkpoint(partial, size, family=family, voiced=True)
            partial.rename(folder)
        return Checkpoint.open(folder)

    return get


@pytest.fixture(scope="session")
def tiny_path(tiny: Checkpoint) -> Path:
    """A folder with the tiny checkpoint of random weights."""
    return tiny.path


@pytest.fixture(scope="session")
def tiny(checkpoint_of: CheckpointOf) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return checkpoint_of("tiny")


@pytest.fixture(scope="session")
def full_path(full: Checkpoint) -> Path:
    """A folder with the full-size checkpoint of random weights."""
    return full.path


@pytest.fixture(scope="session")
def full(checkpoint_of: CheckpointOf) -> Checkpoint:
    """The full-size checkpoint, opened. For tests marked `full`."""
    return checkpoint_of("full")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL. Root installs it when it is missing; others skip, except where CI is set."""
    if find_binaries() is None and os.getuid() == 0 and shutil.which("apt-get"):
        install()
    binaries = find_binaries()
    if binaries is None:
        why = "PostgreSQL is not installed (apt-get install postgresql) and only root can install it"
        assert not os.environ.get("CI"), why
        pytest.skip(why)
    server = Postgres(binaries)
    server.start()
    yield server
    server.stop()
    server.remove()


_schemas = itertools.count()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLAlchemy's URL of an empty database, of each kind that voices can be kept in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/voices.sqlite"
    postgres: Postgres = request.getfixturevalue("postgres")
    name = f"empty{next(_schemas)}"
    sql(postgres.url, f"CREATE SCHEMA {name}")
    return postgres.url_of_schema(name)
