"""Real tritonservers for all tests of a session: one with the tiny checkpoint, one for each other family."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chatterbox_client import Client
from chatterbox_engine.checkpoint.families import Family
from chatterbox_engine.checkpoint.random_checkpoint import TINY
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_engine.serving.contract import SAMPLING
from tests import chromium
from tests.conftest import CheckpointOf
from tests.server.front import Front
from tests.server.repository import add_pair, add_voices

INT8 = "-int8"
VOICE_KEY = "the tests' key"


@pytest.fixture(scope="session", autouse=True)
def own_voice_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Isolates the test servers from the user's voices, and allows tests to change voices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATTERBOX_VOICE_STORE", str(tmp_path_factory.mktemp("voices") / "voices.sqlite"))
        patch.setenv("CHATTERBOX_VOICE_KEY", VOICE_KEY)  # of the servers and of the clients
        yield


def client_of(server: TritonServer, protocol: Any = "grpc", *, model: str = "chatterbox") -> Client:
    """A client of one of a server's models."""
    return Client(server.http_url if protocol == "http" else server.grpc_url, protocol, model=model, timeout=120)


@dataclass(frozen=True)
class Spoken:
    """A family on a running server."""

    family: Family
    server: TritonServer
    model: str

    def client(self, protocol: Any) -> Client:
        return client_of(self.server, protocol, model=self.model)

    def supported(self, options: dict[str, Any]) -> dict[str, Any]:
        """Those of the options that the family supports."""
        refused = set(SAMPLING) - set(self.family.inputs)
        return {name: value for name, value in options.items() if name not in refused}


@pytest.fixture(scope="session")
def server_of(
    checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], TritonServer]]:
    """Servers of the other families, started on first use. The key is a name of `random_checkpoint.TINY`, which is also
    the model's name; with the suffix INT8, the weights are quantised."""
    running: dict[str, TritonServer] = {}
    with contextlib.ExitStack() as stack:

        def get(name: str) -> TritonServer:
            if name not in running:
                folder = tmp_path_factory.mktemp(name)
                checkpoint = checkpoint_of(name.removesuffix(INT8))
                how = "int8" if name.endswith(INT8) else "none"
                add_pair(folder / "models", name, checkpoint=str(checkpoint.path), quantization=how)
                add_voices(folder / "models")
                options = ServerOptions(model_repository=folder / "models", log=folder / "triton.log")
                running[name] = stack.enter_context(TritonServer(options))
            return running[name]

        yield get


@pytest.fixture(
    scope="session",
    params=[
        "tiny",
        "tiny-turbo",
        "tiny-flash",
        pytest.param("tiny-multilingual", marks=pytest.mark.full),
        pytest.param("tiny-nano", marks=pytest.mark.full),
        pytest.param(f"tiny-nano{INT8}", marks=pytest.mark.full),
    ],
)
def spoken(request: pytest.FixtureRequest) -> Spoken:
    """Every family in turn, one of them with quantised weights too."""
    name: str = request.param
    if name == "tiny":
        return Spoken(TINY[name], request.getfixturevalue("server"), "chatterbox")
    return Spoken(TINY[name.removesuffix(INT8)], request.getfixturevalue("server_of")(name), name)


@pytest.fixture(scope="session")
def lexicon_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's lexicons, of no word."""
    path = tmp_path_factory.mktemp("lexicon") / "lexicon.yaml"
    path.write_text("{}")
    return path


@pytest.fixture(scope="session")
def server(tiny_path: Path, lexicon_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that synthesises; its log is kept for the failure report."""
    log = tmp_path_factory.mktemp("server") / "triton.log"
    environment = {"CHATTERBOX_CHECKPOINT": str(tiny_path), "CHATTERBOX_LEXICON_FILE": str(lexicon_file)}
    options = ServerOptions(environment=environment, log=log)
    with TritonServer(options) as running:
        yield running


@pytest.fixture(scope="session")
def front(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The gateway in front of that server."""
    options = ["--metrics-url", server.metrics_url]
    with Front(server.grpc_url, tmp_path_factory.mktemp("front") / "front.log", options) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> str:
    """Root installs it when it is missing; others skip, except where CI is set."""
    if chromium.find() is None and os.getuid() == 0:
        chromium.install()
    found = chromium.find()
    if found is None:
        why = "Chromium is not installed (apt-get install chromium) and only root can install it"
        assert not os.environ.get("CI"), why
        pytest.skip(why)
    return found
