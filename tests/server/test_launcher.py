"""The launcher with a real tritonserver and models of a few lines."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http

from chatterbox_engine.errors import ConfigError
from chatterbox_engine.launcher import ServerFailed, ServerOptions, TritonServer
from chatterbox_engine.launcher.regions import SHARED_MEMORY

pytestmark = pytest.mark.server

FIXTURES = Path(__file__).parent / "fixtures"
ENDS_WITHIN = 10.0
"""Seconds; the promise of the launcher for a server that failed."""


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    with TritonServer(ServerOptions(model_repository=FIXTURES / "echo")) as running:
        yield running


@dataclass
class Launched:
    """`chatterbox-serve` with the echo model, ready."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def addresses(self) -> dict[str, str]:
        addresses: dict[str, str] = json.loads((self.folder / "addresses.json").read_text())
        return addresses

    def read_until(self, text: str) -> None:
        """Reads what the launcher prints up to a line that holds `text`."""
        assert self.process.stdout is not None
        assert any(text in line for line in self.process.stdout), f"{text} was never printed"

    def rest(self) -> str:
        """What the launcher prints from here to its end."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    @contextlib.contextmanager
    def request_that_never_ends(self) -> Iterator[None]:
        """One that the model has begun; whatever becomes of it is not asked."""
        tensor = {"name": "value", "shape": [1, 1], "datatype": "FP32", "data": [-1.0]}
        with contextlib.closing(http.client.HTTPConnection(self.addresses["http"])) as connection:
            connection.request("POST", "/v2/models/echo/infer", json.dumps({"inputs": [tensor]}))
            self.read_until("holding a request")
            yield

    def family(self) -> dict[str, psutil.Process]:
        """The guard, the server and the model's process."""
        guard, server, stub = psutil.Process(self.process.pid).children(recursive=True)
        assert server.name() == "tritonserver"
        return {"guard": guard, "server": server, "stub": stub}

    def leftovers(self) -> list[str]:
        regions = [path.name for path in SHARED_MEMORY.glob(f"chatterbox_*_{self.process.pid}_*")]
        return regions + [path.name for path in (self.folder / "tmp").iterdir()]


def serve(repository: str, folder: Path, *arguments: str) -> Launched:
    (folder / "tmp").mkdir()
    options = ["--free-ports", "--host=127.0.0.1", "--model-repository", str(FIXTURES / repository), *arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "chatterbox_engine.launcher.cli", *options],
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,  # holds 64 KiB, several times what a server prints here
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Launched(process, folder)


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    running = serve("echo", tmp_path, "--no-gateway", "--address-file", str(tmp_path / "addresses.json"))
    with running.process:
        try:
            running.read_until("metrics ")
            yield running
        finally:
            running.process.kill()


@contextlib.contextmanager
def all_ended(processes: dict[str, psutil.Process]) -> Iterator[None]:
    """Fails unless the processes have ended `ENDS_WITHIN` after the block began."""
    pidfds = {name: os.pidfd_open(process.pid) for name, process in processes.items()}
    deadline = time.monotonic() + ENDS_WITHIN
    try:
        yield
        for name, pidfd in pidfds.items():
            ended, _, _ = select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
            assert ended, f"the {name} still runs"
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_a_model_answers_over_both_protocols(server: TritonServer, module: Any) -> None:
    url = server.http_url if module is tritonclient.http else server.grpc_url
    value = module.InferInput("value", [1, 1], "FP32")
    value.set_data_from_numpy(np.array([[2.5]], dtype=np.float32))
    with module.InferenceServerClient(url) as client:
        answer = client.infer("echo", [value])
    assert answer.as_numpy("value").tolist() == [[2.5]]
    assert (answer.as_numpy("process").item(),) == server.stub_pids


def test_metrics_are_served(server: TritonServer) -> None:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as page:
        assert b"nv_inference_request_success" in page.read()


def test_the_model_runs_in_the_virtual_environment_of_the_launcher(server: TritonServer) -> None:
    maps = Path(f"/proc/{server.stub_pids[0]}/maps").read_text()
    assert str(Path(np.__file__).parent) in maps


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(server: TritonServer) -> None:
    port = int(server.http_url.split(":")[1])
    with pytest.raises(ConfigError, match=f"cannot use port {port}"):
        TritonServer(ServerOptions(model_repository=FIXTURES / "echo", http_port=port)).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_and_leaves_nothing_behind(launched: Launched, number: signal.Signals) -> None:
    assert set(launched.addresses) == {"http", "grpc", "metrics"}
    assert len(launched.leftovers()) == 1, "the folder of a running server; its region has no name any more"
    with all_ended(launched.family()):
        launched.process.send_signal(number)
        assert launched.process.wait() == 0
    assert launched.leftovers() == []
    assert not (launched.folder / "addresses.json").exists()


def test_a_second_signal_does_not_wait_for_requests(launched: Launched) -> None:
    with launched.request_that_never_ends(), all_ended(launched.family()):
        launched.process.send_signal(signal.SIGTERM)
        launched.read_until("Signal (15) received")
        launched.process.send_signal(signal.SIGINT)
        assert launched.process.wait() == 0
    assert launched.leftovers() == []


def test_a_killed_model_process_takes_the_server_down(launched: Launched) -> None:
    family = launched.family()
    with launched.request_that_never_ends(), all_ended(family):
        family["stub"].kill()
        assert launched.process.wait() == 1
    assert f"the process {family['stub'].pid} of the model echo died (killed by SIGKILL)" in launched.rest()
    assert launched.leftovers() == []


@pytest.mark.parametrize("victim", ["server", "guard"])
def test_a_killed_server_or_guard_ends_the_rest(launched: Launched, victim: str) -> None:
    family = launched.family()
    with all_ended(family):
        family[victim].kill()
        assert launched.process.wait() == 1
    assert "tritonserver ended (killed by SIGKILL)" in launched.rest()
    assert launched.leftovers() == []


def test_a_killed_launcher_leaves_no_orphan(launched: Launched) -> None:
    with all_ended(launched.family()):
        launched.process.kill()
    assert launched.leftovers() == []


def test_a_model_that_fails_to_start_is_named_with_its_error(tmp_path: Path) -> None:
    broken = serve("broken", tmp_path)
    with broken.process:
        assert broken.process.wait(ENDS_WITHIN) == 1
        _, message = broken.rest().split("launcher: the server did not start (exit code 1)")
    assert "failed to load 'broken'" in message
    assert "the checkpoint of this model is missing on purpose" in message


def test_a_model_that_is_never_ready_fails_the_start(tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)
    options = ServerOptions(
        model_repository=FIXTURES / "echo",
        environment={"ECHO_NEVER_READY": "1"},
        startup_timeout=1.0,
        log=tmp_path / "log",
    )
    with pytest.raises(ServerFailed, match="not ready after 1 s"):
        TritonServer(options).start()
    assert "loading: echo" in (tmp_path / "log").read_text()
    assert psutil.Process().children(recursive=True) == before


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Launched]:
    """A server with a gateway before it, whose family has the gateway's process too."""
    running = serve("echo", tmp_path, "--address-file", str(tmp_path / "addresses.json"))
    with running.process:
        try:
            running.read_until("gateway ")
            yield running
        finally:
            running.process.kill()


def processes(launched: Launched) -> dict[str, psutil.Process]:
    found = psutil.Process(launched.process.pid).children(recursive=True)
    return {"gateway" if "chatterbox_gateway.cli" in it.cmdline() else it.name(): it for it in found}


def page_of(launched: Launched) -> str:
    with contextlib.closing(http.client.HTTPConnection(launched.addresses["gateway"])) as connection:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()


def test_a_gateway_serves_beside_the_server_comes_back_when_it_dies_and_stops_with_it(gateway: Launched) -> None:
    assert "<html" in page_of(gateway)
    processes(gateway)["gateway"].kill()
    gateway.read_until("the gateway ended (killed by SIGKILL) and is started again")
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            assert "<html" in page_of(gateway)
            break
        assert time.monotonic() < deadline
    with all_ended(processes(gateway)):
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0


def test_a_killed_launcher_leaves_no_gateway(gateway: Launched) -> None:
    with all_ended(processes(gateway)):
        gateway.process.kill()
