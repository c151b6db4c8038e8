"""The examples of README.md and docs/, run as they stand against the real server, whose ports replace the usual ones.

The blocks of a page run in order in one folder, so that a later one may use what an earlier one wrote.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from chatterbox_client import Client
from chatterbox_engine.launcher.server import TritonServer
from tests.documents import PAGES, ROOT, Block, blocks
from tests.server.front import Front

pytestmark = pytest.mark.server

DOWNLOAD = "downloads weights"
SERVES = "serves until it is interrupted"
LONG = "takes minutes"
DOCKER = "needs Docker"
FRAMEWORK = "tests/server/test_agent_frameworks.py runs the same, in an environment of its own"
CLUSTER = "needs a Kubernetes cluster"
GPU = "needs a GPU"
BATCH = "tests/server/test_batch.py runs both commands"
KEY = "sets the reader's key; that of the tests' server is set already"

NOT_RUN = {
    "README.md": {
        "make demo": "make test runs the same in tests/server/test_demo_voice.py, and itself",
        "make serve CHECKPOINT=": DOWNLOAD,
        "export CHATTERBOX_VOICE_KEY=": KEY,
        "docker build": DOCKER,
    },
    "docs/agents.md": {
        "from livekit": FRAMEWORK,
        "from pipecat": FRAMEWORK,
    },
    "docs/batch.md": {
        "pip install": "changes the environment; make setup installs the same",
        "chatterbox batch": BATCH,
        "chatterbox book": BATCH,
    },
    "docs/deploy.md": {
        "docker build": DOCKER,
        "docker run --network host": DOCKER,
        "export POSTGRES_PASSWORD=": DOCKER,
        ".venv/bin/chatterbox-serve --open": f"{SERVES}; tests/server/test_shutdown.py unloads and loads",
        ".venv/bin/chatterbox-gateway": f"{SERVES}; the fixture `front` runs it",
        "CHATTERBOX_SERVERS=": DOCKER,
        "make loadtest HOST=server": LONG,
    },
    "docs/kubernetes.md": {
        "docker build": DOCKER,
        "kubectl create secret": CLUSTER,
        "helm upgrade": CLUSTER,
    },
    "docs/models.md": {
        "make serve CHECKPOINT=ResembleAI/chatterbox-turbo": DOWNLOAD,
        "CHATTERBOX_BASE=": DOWNLOAD,
        "make serve CHECKPOINT=ResembleAI/Chatterbox-Multilingual": DOWNLOAD,
        "cp -r model_repository": f"{SERVES}; tests/server/test_several_models.py runs it",
    },
    "docs/gateway.md": {
        ".venv/bin/chatterbox-gateway": f"{SERVES}; the fixture `front` runs it",
        "pip install": "changes the environment; tests/server/test_image.py installs it",
    },
    "docs/performance.md": {
        "make bench": LONG,
        "make gpu-visit-prepare": LONG,
        "PYTHONPATH=": GPU,
    },
    "docs/troubleshooting.md": {
        "CHATTERBOX_DTYPE=float32 make serve": DOWNLOAD,
        "make loadtest HOST=localhost": LONG,
    },
    "docs/voices.md": {
        "export CHATTERBOX_VOICE_KEY=": KEY,
        "CHATTERBOX_VOICE_STORE=": SERVES,
    },
}
"""Examples that cannot run here, by page and by how they begin, and why."""


def reason(page: str, block: Block) -> str | None:
    """Why a block does not run, or None."""
    return next((why for start, why in NOT_RUN.get(page, {}).items() if block.code.startswith(start)), None)


EXAMPLES = {
    str(path.relative_to(ROOT)): [block for block in blocks(path.read_text(encoding="utf-8")) if block.language]
    for path in PAGES
}
RUN = [name for name, found in EXAMPLES.items() if any(reason(name, block) is None for block in found)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a reader's: with the checkout's environment, and a player that takes what it is given."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    player = tmp_path / "bin" / "aplay"
    player.parent.mkdir()
    player.write_text("#!/bin/sh\nexec cat > played.pcm\n")
    player.chmod(0o755)
    return tmp_path


@pytest.fixture
def without_voices(server: TritonServer) -> Iterator[None]:
    """Removes the voices that a page leaves on the server."""
    yield
    with Client(server.http_url) as client:
        for voice in client.voices.list():
            client.voices.delete(voice.name)


@pytest.mark.parametrize("page", RUN)
@pytest.mark.usefixtures("without_voices")
def test_the_examples_of_a_page_run(server: TritonServer, front: Front, folder: Path, page: str) -> None:
    places = {"8000": server.http_url, "8001": server.grpc_url, "8002": server.addresses.metrics, "8080": front.address}
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "CHATTERBOX_URL": server.http_url,
        "CHATTERBOX_GRPC_URL": server.grpc_url,
    }
    for block in EXAMPLES[page]:
        if reason(page, block) is not None:
            continue
        code = block.code
        for port, address in places.items():
            code = code.replace(f"localhost:{port}", address)
        command = (
            [sys.executable, "-c", code] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", code]
        )
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        if block.language == "python":
            assert done.stdout.strip(), code
    for file in folder.glob("*.*"):
        if file.suffix in (".wav", ".flac", ".mp3"):
            assert soundfile.info(file).samplerate == 24_000
            assert soundfile.info(file).frames > 0
    if "aplay" in "".join(block.code for block in EXAMPLES[page]):
        assert (folder / "played.pcm").stat().st_size > 0


def test_examples_that_do_not_run_are_named_each_once() -> None:
    used = {name: [why for block in found if (why := reason(name, block))] for name, found in EXAMPLES.items()}
    assert {name: why for name, why in used.items() if why} == {name: list(NOT_RUN[name].values()) for name in NOT_RUN}


def test_there_are_examples_for_every_client() -> None:
    joined = "".join(block.code for name in RUN for block in EXAMPLES[name] if reason(name, block) is None)
    for client in (
        "from chatterbox_client import Client",
        "from chatterbox_client import AsyncClient",
        "import tritonclient.http",
        "import tritonclient.grpc",
        "from openai import OpenAI",
        "curl -s localhost:8000",
        "curl -sN localhost:8000",
        ".venv/bin/chatterbox say",
    ):
        assert client in joined, client
