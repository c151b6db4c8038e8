"""A server whose gateway unloads idle models: their processes end, and come back with the next request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from chatterbox_engine.launcher.server import ServerOptions, TritonServer

pytestmark = pytest.mark.server

SPEECH = {"input": "Hello there.", "response_format": "wav", "seed": 1, "max_seconds": 0.4}


@pytest.fixture(scope="module")
def frugal(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    environment = {"CHATTERBOX_CHECKPOINT": str(tiny_path), "CHATTERBOX_IDLE_UNLOAD": "1"}
    log = tmp_path_factory.mktemp("idle") / "triton.log"
    with TritonServer(ServerOptions(environment=environment, log=log, gateway_port=0)) as server:
        yield server


def engines(server: TritonServer) -> list[psutil.Process]:
    """The processes of the models that speak."""
    alive = [psutil.Process(pid) for pid in server.stub_pids if psutil.pid_exists(pid)]
    return [process for process in alive if "chatterbox_voices" not in " ".join(process.cmdline())]


def test_idle_models_end_and_come_back_with_the_next_request(frugal: TritonServer) -> None:
    address = f"http://{frugal.addresses.gateway}"
    with httpx.Client(base_url=address, timeout=120) as client:
        answers = []
        for _ in range(2):
            answers.append(client.post("/v1/audio/speech", json=SPEECH).raise_for_status().content)
            _, alive = psutil.wait_procs(engines(frugal), timeout=60)
            assert alive == []
            assert client.get("/health").status_code == 200
            assert httpx.get(f"http://{frugal.http_url}/v2/health/ready").status_code == 200
    assert answers[0] == answers[1]
    assert len(answers[0]) > 1000
