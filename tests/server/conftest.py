"""Real tritonservers for all tests of a session: one with the tiny checkpoint, one with those of the other families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chatterbox_client import Client
from chatterbox_engine.families import ENGLISH, Family
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_engine.random_checkpoint import TINY
from tests.conftest import CheckpointOf
from tests.server.repository import add_pair, add_voices


@pytest.fixture(scope="session", autouse=True)
def own_voice_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the servers of tests away from the user's voices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATTERBOX_VOICE_STORE", str(tmp_path_factory.mktemp("voices") / "voices.sqlite"))
        yield


@dataclass(frozen=True)
class Spoken:
    """A family on a running server."""

    family: Family
    server: TritonServer
    model: str

    def client(self, protocol: Any) -> Client:
        url = self.server.http_url if protocol == "http" else self.server.grpc_url
        return Client(url, protocol, model=self.model, timeout=120)

    def heeded(self, options: dict[str, Any]) -> dict[str, Any]:
        """Those of the options that the family heeds."""
        refused = {"exaggeration", "cfg_weight", "min_p", "top_k"} - set(self.family.inputs)
        return {name: value for name, value in options.items() if name not in refused}


@pytest.fixture(scope="session")
def families_server(checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of the families beside English, a pair of models each, called as in `random_checkpoint.TINY`."""
    folder = tmp_path_factory.mktemp("families")
    repository = folder / "models"
    for name in ("tiny-turbo",):
        add_pair(repository, name, checkpoint_of(name).path)
    add_voices(repository)
    with TritonServer(ServerOptions(model_repository=repository, log=folder / "triton.log")) as running:
        yield running


@pytest.fixture(
    scope="session",
    params=["tiny", "tiny-turbo", pytest.param("tiny-nano", marks=pytest.mark.full)],
)
def spoken(request: pytest.FixtureRequest) -> Spoken:
    """Every family in turn."""
    family = TINY[request.param]
    if family == ENGLISH:
        return Spoken(family, request.getfixturevalue("server"), "chatterbox")
    return Spoken(family, request.getfixturevalue("families_server"), request.param)


@pytest.fixture(scope="session")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that synthesises; its log is kept for the failure report."""
    log = tmp_path_factory.mktemp("server") / "triton.log"
    options = ServerOptions(environment={"CHATTERBOX_CHECKPOINT": str(tiny_path)}, log=log)
    with TritonServer(options) as running:
        yield running
