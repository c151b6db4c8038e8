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

import pytest

from chatterbox_client import Client
from chatterbox_engine.launcher.triton import STUB

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
        [program, *options], env=variables, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
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
    assert {name for name, _ in installed - locked} == {"chatterbox-engine", "chatterbox-client"}
    assert {"torch", "tritonclient", "sqlalchemy", "aiohttp", "av"} <= names
    assert not names & {"nvidia-pytriton", "pytest", "locust", "mypy", "ruff", "openai"}


def normal(name: str) -> str:
    """A package's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_installed_server_speaks_and_its_health_check_passes(environment: Path, tmp_path: Path) -> None:
    with started(environment, tmp_path) as addresses:
        with Client(addresses["grpc"], "grpc") as client:
            assert client.speak("Hello from the image.", seed=1).duration > 0
        check = re.findall(r'^    CMD \["python", "-c", "(.*)"\]$', DOCKERFILE, flags=re.MULTILINE)
        assert len(check) == 1
        command = check[0].replace("localhost:8000", addresses["http"])
        subprocess.run([environment / "bin" / "python", "-c", command], check=True)
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.run(
                [environment / "bin" / "python", "-c", check[0].replace("localhost:8000", "localhost:1")],
                check=True,
                capture_output=True,
            )
