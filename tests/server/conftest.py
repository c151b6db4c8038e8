"""One real tritonserver with the tiny checkpoint for all tests of a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatterbox_engine.launcher.server import ServerOptions, TritonServer


@pytest.fixture(scope="session", autouse=True)
def own_voice_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the servers of tests away from the user's voices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATTERBOX_VOICE_STORE", str(tmp_path_factory.mktemp("voices") / "voices.sqlite"))
        yield


@pytest.fixture(scope="session")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that synthesises; its log is kept for the failure report."""
    log = tmp_path_factory.mktemp("server") / "triton.log"
    options = ServerOptions(environment={"CHATTERBOX_CHECKPOINT": str(tiny_path)}, log=log)
    with TritonServer(options) as running:
        yield running
