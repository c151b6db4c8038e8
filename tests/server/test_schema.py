"""The gateway's schema against its answers: schemathesis generates requests for all routes, valid and invalid."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatterbox_client import Client
from chatterbox_engine.launcher.server import TritonServer
from tests.server.front import Front

pytestmark = [pytest.mark.server, pytest.mark.full]

PROGRAM = "schemathesis==4.32.5"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.fixture(scope="module")
def schemathesis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In an environment of its own, since its dependencies are many."""
    folder = tmp_path_factory.mktemp("schemathesis")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PROGRAM]
    subprocess.run(install, check=True)
    return folder / "bin" / "schemathesis"


@pytest.fixture
def gateway(server: TritonServer, tmp_path: Path) -> Iterator[Front]:
    """One that changes voices; what it stores is removed."""
    options = ["--change-voices", "--metrics-url", server.metrics_url]
    with Front(server.grpc_url, tmp_path / "log", options) as running:
        yield running
    with Client(server.http_url) as client:
        for voice in client.voices.list():
            client.voices.delete(voice.name)


@pytest.mark.timeout(1800)
def test_no_answer_is_undocumented(schemathesis: Path, gateway: Front, tmp_path: Path) -> None:
    command = [
        *(schemathesis, "run", f"http://{gateway.address}/openapi.json"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1"),
        *("--checks", ",".join(CHECKS), "--request-timeout", "120", "--no-color"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
