"""The commands of Dockerfile.triton, executed here: installed into a clean virtual environment and started from there,
with the Triton of nvidia-pytriton laid out as NVIDIA's image has it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from chatterbox_client import Client
from chatterbox_engine.launcher.triton import STUB
from tests.server.front import Front

pytestmark = [pytest.mark.server, pytest.mark.full]

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile.triton").read_text()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The virtual environment that the image's own command makes."""
    command = re.findall(r"^RUN --mount=\S+ (bash deploy/install\.sh) \S+$", DOCKERFILE, flags=re.MULTILINE)
    assert len(command) == 1
    folder = tmp_path_factory.mktemp("image") / "venv"
    subprocess.run(
        [*command[0].split(), str(folder)], cwd=ROOT, check=True, env={**os.environ, "PYTHON": base_python()}
    )
    return folder


def base_python() -> str:
    """An interpreter without our packages, as the image's."""
    return str(Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}"))


def triton_home(folder: Path) -> tuple[Path, Path]:
    """A folder like the image's /opt/tritonserver, and that of the libraries which the image has in the system's."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    home = folder / "tritonserver"
    backend = home / "backends" / "python"
    backend.mkdir(parents=True)
    (home / "bin").symlink_to(package / "tritonserver" / "bin")
    stub = package / "tritonserver" / "python_backend_stubs" / f"3.{sys.version_info.minor}" / STUB
    for part in [*(package / "tritonserver" / "backends" / "python").iterdir(), stub]:
        (backend / part.name).symlink_to(part)
    return home, package.parent / "nvidia_pytriton.libs"


@contextmanager
def started(environment: Path, folder: Path) -> Iterator[dict[str, str]]:
    """The addresses of a server started as the image's entry point starts it."""
    home, libraries = triton_home(folder)
    entry = json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)[0])
    addresses = folder / "addresses.json"
    variables = {
        "PATH": f"{environment}/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "LD_LIBRARY_PATH": str(libraries),
        "CHATTERBOX_TRITON_HOME": str(home),
        "CHATTERBOX_MODEL_REPOSITORY": str(ROOT / "model_repository"),
        "CHATTERBOX_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    program = str(environment / "bin" / entry[0])
    options = ["--free-ports", "--host", "127.0.0.1", "--address-file", str(addresses)]
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(
        [program, *entry[1:], *options], env=variables, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
    )
    assert server.stdout is not None
    try:
        assert server.stdout.readline().startswith("http"), (folder / "server.log").read_text()
        yield json.loads(addresses.read_text())
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
        server.stdout.close()
        log.close()
    assert code == 0


def test_only_what_is_needed_at_run_time_is_installed_in_the_locked_versions(environment: Path) -> None:
    program = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
    command = [environment / "bin" / "python", "-c", program]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    installed = {(normal(name), version) for name, version in (line.split() for line in listing.splitlines())}
    lock = (ROOT / "requirements" / "requirements.lock").read_text()
    locked = {(normal(name), version) for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)}
    names = {name for name, _ in installed}
    assert {name for name, _ in installed - locked} == {"chatterbox-engine", "chatterbox-client", "chatterbox-gateway"}
    assert {"torch", "tritonclient", "sqlalchemy", "fastapi", "av"} <= names
    assert not names & {"nvidia-pytriton", "pytest", "locust", "mypy", "ruff", "openai"}


def normal(name: str) -> str:
    """A package's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def addresses(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of a server that runs from that environment."""
    with started(environment, tmp_path_factory.mktemp("server")) as running:
        yield running


def test_the_installed_server_speaks_and_its_health_check_passes(environment: Path, addresses: dict[str, str]) -> None:
    with Client(addresses["grpc"], "grpc") as client:
        assert client.speak("Hello from the image.", seed=1).duration > 0
    check = re.findall(r'^    CMD \["python", "-c", "(.*)"\]$', DOCKERFILE, flags=re.MULTILINE)
    assert len(check) == 1
    assert healthy(environment, check[0].replace("localhost:8000", addresses["http"]))
    assert not healthy(environment, check[0].replace("localhost:8000", "localhost:1"))


def test_the_front_of_the_compose_file_speaks_and_its_health_check_passes(
    environment: Path, addresses: dict[str, str], tmp_path: Path
) -> None:
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["gateway"]
    program, *options = service["entrypoint"]
    assert options[-2:] == ["--url", "server:8001"]
    way, python, flag, check = service["healthcheck"]["test"]
    assert (way, python, flag) == ("CMD", "python", "-c")
    with Front(addresses["grpc"], tmp_path / "log", options[:-2], program=environment / "bin" / program) as front:
        assert healthy(environment, check.replace("localhost:8080", front.address))
        assert not healthy(environment, check.replace("localhost:8080", "localhost:1"))
        body = {"input": "Hello from the image.", "seed": 1}
        assert len(httpx.post(f"http://{front.address}/v1/audio/speech", json=body, timeout=120).read()) > 1_000


def healthy(environment: Path, check: str) -> bool:
    """What a health check says, run by the environment's Python."""
    return (
        subprocess.run([environment / "bin" / "python", "-c", check], check=False, capture_output=True).returncode == 0
    )
