"""A server that is told to stop, killed, or left: nothing is lost, everybody is told, nothing stays behind."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from chatterbox_client import ChatterboxClientError, Client, Unavailable, concatenate
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from tests.server.cancelled import LONG

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

CUT_OFF = "the server is shutting down: the request did not finish in the time that was left for it"


class Served:
    """`chatterbox-serve` as a process, ready."""

    def __init__(self, process: subprocess.Popen[bytes], addresses: dict[str, str]) -> None:
        self.process, self.addresses = process, addresses

    def client(self, protocol: str) -> Client:
        return Client(self.addresses[protocol], protocol, timeout=600)  # type: ignore[arg-type]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        with closing(http.client.HTTPConnection(self.addresses["http"])) as connection:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


@contextmanager
def serve(checkpoint: Path, folder: Path, *options: str) -> Iterator[Served]:
    file = folder / "addresses.json"
    command = [sys.executable, "-m", "chatterbox_engine.launcher.cli", "--free-ports", "--host=127.0.0.1"]
    command += ["--checkpoint", str(checkpoint), "--address-file", str(file), *options]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    with process:
        try:
            assert process.stdout is not None
            assert b"http" in process.stdout.readline(), (folder / "log").read_text()
            yield Served(process, json.loads(file.read_text()))
        finally:
            process.kill()


class Load:
    """Whole requests that take long, and streams beside them: all under way when `__init__` returns."""

    def __init__(self, served: Served, streams: int, whole: int, seconds: float) -> None:
        """seconds: of audio in each segment of a stream."""
        self._grpc, self._http = served.client("grpc"), served.client("http")
        self._begun = threading.Barrier(streams + 1)
        self._pool = ThreadPoolExecutor(streams + whole)
        self._answers = [self._pool.submit(self._speak, number) for number in range(whole)]
        wait_for(lambda: _active(served) >= whole, "the server counts the whole requests")
        self._answers += [self._pool.submit(self._stream, number, seconds) for number in range(streams)]
        self._begun.wait(600)

    def outcomes(self) -> list[float | ChatterboxClientError]:
        """Of each request, the seconds of its audio or why there are none."""
        with self._pool, self._grpc, self._http:
            return [answer.result() for answer in self._answers]

    def _stream(self, seed: int, seconds: float) -> float | ChatterboxClientError:
        try:
            stream = self._grpc.stream(LONG, seed=seed, max_seconds=seconds)
            first = next(stream)
            self._begun.wait(600)
            return concatenate([first, *stream]).duration
        except ChatterboxClientError as error:
            return error

    def _speak(self, number: int) -> float | ChatterboxClientError:
        client = self._grpc if number % 2 else self._http
        try:
            return client.speak(LONG, seed=number, max_seconds=40.0).duration
        except ChatterboxClientError as error:
            return error


def check_nothing_is_lost(checkpoint: Path, folder: Path, streams: int, whole: int) -> None:
    with serve(checkpoint, folder, "--grace-seconds=600", "--no-gateway") as served:
        load = Load(served, streams, whole, seconds=2.0)
        served.process.send_signal(signal.SIGTERM)
        outcomes = load.outcomes()
        assert [outcome for outcome in outcomes if isinstance(outcome, ChatterboxClientError)] == []
        assert served.process.wait(120) == 0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Asks again and again, as fast as the server answers. Fails after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"


def _refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except Unavailable as error:
        return str(error) == "the server is shutting down"
    return False


def _active(served: Served) -> float:
    """Requests that the server counts as under way, once a second."""
    with closing(http.client.HTTPConnection(served.addresses["metrics"])) as connection:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    lines = [line for line in page.splitlines() if line.startswith("chatterbox_requests_active{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def check_everybody_is_told(checkpoint: Path, folder: Path, streams: int, whole: int) -> None:
    with serve(checkpoint, folder, "--grace-seconds=0.5", "--no-gateway") as served:
        load = Load(served, streams, whole, seconds=40.0)
        served.process.send_signal(signal.SIGTERM)
        outcomes = load.outcomes()
        cut_off = [outcome for outcome in outcomes if isinstance(outcome, ChatterboxClientError)]
        assert {type(outcome) for outcome in cut_off} == {Unavailable}, outcomes
        assert {str(outcome) for outcome in cut_off} == {CUT_OFF}
        assert served.process.wait(120) == 0


@pytest.mark.full
def test_what_is_under_way_finishes_after_sigterm(tiny_path: Path, tmp_path: Path) -> None:
    check_nothing_is_lost(tiny_path, tmp_path, 4, 2)


@pytest.mark.parametrize("streams", [4, pytest.param(32, marks=pytest.mark.full)])
def test_streams_through_the_gateway_finish_after_sigterm(tiny_path: Path, tmp_path: Path, streams: int) -> None:
    begun = threading.Barrier(streams + 1)

    def listen(seed: int) -> int:
        url = f"http://{served.addresses['gateway']}/v1/audio/speech"
        body = {"input": LONG, "seed": seed, "max_seconds": 2.0, "response_format": "pcm"}
        with httpx.stream("POST", url, json=body, timeout=600) as answer:
            pieces = answer.iter_bytes()
            size = len(next(pieces))
            begun.wait(600)
            return size + sum(map(len, pieces))  # one that is cut off raises

    with serve(tiny_path, tmp_path, "--grace-seconds=600") as served, ThreadPoolExecutor(streams) as pool:
        sizes = [pool.submit(listen, seed) for seed in range(streams)]
        begun.wait(600)
        served.process.send_signal(signal.SIGTERM)
        assert all(size.result() > 48_000 for size in sizes)
        assert served.process.wait(120) == 0


@pytest.mark.full
def test_what_takes_too_long_is_told_so(tiny_path: Path, tmp_path: Path) -> None:
    check_everybody_is_told(tiny_path, tmp_path, 4, 2)


@pytest.mark.full
@pytest.mark.parametrize("check", [check_nothing_is_lost, check_everybody_is_told])
@pytest.mark.parametrize("repetition", range(10))
def test_thirty_two_streams_and_eight_requests_ten_times(
    tiny_path: Path, tmp_path: Path, check: Callable[..., None], repetition: int
) -> None:
    check(tiny_path, tmp_path, 32, 8)


def test_a_server_that_drains_is_not_ready_and_refuses_new_requests(tiny_path: Path, tmp_path: Path) -> None:
    with serve(tiny_path, tmp_path, "--grace-seconds=600", "--no-gateway") as served, served.client("grpc") as client:
        stream = client.stream(LONG, seed=1, max_seconds=20.0)
        first = next(stream)
        served.process.send_signal(signal.SIGTERM)
        wait_for(lambda: served.ask("GET", "/v2/health/ready")[0] != 200, "it is not ready")
        # readiness goes at the same time as the models are told, so that a request may still slip in between
        wait_for(lambda: _refused(lambda: client.speak("Hello.", max_seconds=0.4)), "it refuses whole requests")
        wait_for(lambda: _refused(lambda: list(client.stream("Hello.", max_seconds=0.4))), "it refuses streams")
        tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["Hello."]}
        status, message = served.ask("POST", "/v2/models/chatterbox/infer", {"inputs": [tensor]})
        assert (status, json.loads(message)) == (503, {"error": "the server is shutting down"})
        stream.close()
        assert first.index == 0
        assert served.process.wait(120) == 0


@pytest.mark.full
def test_no_process_outlives_a_guard_that_is_killed_under_load(tiny_path: Path, tmp_path: Path) -> None:
    with serve(tiny_path, tmp_path, "--no-gateway") as served:
        load = Load(served, 6, 4, seconds=40.0)
        family = psutil.Process(served.process.pid).children(recursive=True)
        family[0].kill()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
        assert served.process.wait(60) == 1
        load.outcomes()


@pytest.mark.full
def test_clients_that_leave_at_the_last_chunk_hold_no_model_and_an_unloaded_one_is_no_death(
    tiny_path: Path, tmp_path: Path
) -> None:
    environment = {"CHATTERBOX_CHECKPOINT": str(tiny_path)}
    options = ServerOptions(environment=environment, log=tmp_path / "log", opened=["model-repository"])
    with TritonServer(options) as server, Client(server.grpc_url, "grpc", timeout=120) as client:
        for seed in range(10):
            for chunk in client.stream("Hello.", seed=seed, max_seconds=0.4):
                if chunk.is_last:
                    break
        for what in ("unload", "load"):  # so soon that the old process's end is noticed after the new one's start
            _control(server, "chatterbox_voices", what)
        for model in ("chatterbox_stream", "chatterbox"):
            processes = [psutil.Process(pid) for pid in _processes_of(server, model)]
            _control(server, model, "unload")
            assert psutil.wait_procs(processes, timeout=20)[1] == []
        with pytest.raises(ChatterboxClientError):
            client.speak("Hello.")
        for model in ("chatterbox", "chatterbox_stream"):
            _control(server, model, "load")
        assert concatenate(list(client.stream("Hello.", seed=1, max_seconds=0.4))).duration > 0


def _processes_of(server: TritonServer, model: str) -> list[int]:
    alive = [psutil.Process(pid) for pid in server.stub_pids if psutil.pid_exists(pid)]
    found = [process.pid for process in alive if any(f"/{model}/" in part for part in process.cmdline())]
    assert found
    return found


def _control(server: TritonServer, model: str, what: str) -> None:
    with closing(http.client.HTTPConnection(server.http_url, timeout=120)) as connection:
        connection.request("POST", f"/v2/repository/models/{model}/{what}", "{}")
        assert connection.getresponse().status == 200
