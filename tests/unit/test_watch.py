"""The launcher's watch, over small programs in place of a guard and its server."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chatterbox_engine.launcher import draining
from chatterbox_engine.launcher.watch import Watch
from chatterbox_engine.serving.supervision import CONTROL, DRAINED

WAIT = 20.0

SERVER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("Started Metrics Service", flush=True)
signal.sigwait([signal.SIGTERM])
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:  # not pytest's: a socket's path may have 107 characters
        (Path(path) / draining.REPOSITORY).mkdir()
        yield Path(path)


def watch_of(
    command: list[str],
    folder: Path,
    log: Callable[[str], None] = print,
    say: Callable[[str], None] = print,
    http_url: str = "127.0.0.1:1",
) -> Watch:
    # the guard takes SIGQUIT even where it was ignored, as in a shell's background job: so must this
    process = subprocess.Popen(["env", "--default-signal=QUIT", *command], stdout=subprocess.PIPE)
    return Watch(
        process,
        http_url=http_url,
        folder=folder,
        headers={"key": "token"},
        startup_timeout=60,
        grace_seconds=7.5,
        log=log,
        say=say,
        progress_seconds=0.01,
    )


def watch_shell(script: str, folder: Path, log: Callable[[str], None], say: Callable[[str], None]) -> Watch:
    """A watch of a shell script in place of a server."""
    return watch_of(["sh", "-c", script], folder, log, say)


class Health(BaseHTTPRequestHandler):
    """As Triton's: ready until a model is to be loaded that cannot be."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Triton)
        self._answer(400 if self.server.loaded else 200)

    def do_POST(self) -> None:
        assert isinstance(self.server, Triton)
        self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["key"] == "token"
        self.server.loaded.append(self.path)
        self._answer(400)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *_args: object) -> None:
        pass


class Triton(ThreadingHTTPServer):
    """The HTTP side of a server."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Health)
        self.loaded: list[str] = []


@contextmanager
def ready_server(folder: Path, say: Callable[[str], None] = print) -> Iterator[tuple[Watch, Triton, threading.Thread]]:
    """A watch that runs, and what it watches is ready."""
    with Triton() as triton:
        web = threading.Thread(target=triton.serve_forever)
        web.start()
        host, port = triton.server_address[:2]
        watch = watch_of([sys.executable, "-c", SERVER], folder, say=say, http_url=f"{host!s}:{port}")
        running = threading.Thread(target=watch.run)
        running.start()
        try:
            assert watch.settled.wait(WAIT)
            yield watch, triton, running
        finally:
            watch.request_stop(kill=True)
            running.join(WAIT)
            triton.shutdown()
            web.join(WAIT)
    assert not running.is_alive()


def model(folder: Path) -> socket.socket:
    """The line of a model that has called the launcher."""
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(WAIT)
    line.connect(str(folder / CONTROL))
    return line


@pytest.mark.parametrize("ends", [False, True])
def test_a_server_is_told_to_stop_once_its_models_are_drained_or_have_ended(folder: Path, ends: bool) -> None:
    said: list[str] = []
    with ready_server(folder, said.append) as (watch, triton, running), model(folder) as one, model(folder) as other:
        watch.request_stop(kill=False)
        assert [line.recv(64) for line in (one, other)] == [b"7.5\n", b"7.5\n"]
        one.sendall(DRAINED)
        assert running.is_alive()
        if ends:
            other.close()
        else:
            other.sendall(DRAINED)
        running.join(WAIT)
        assert not running.is_alive()
    assert triton.loaded == ["/v2/repository/models/server_is_stopping/load"]
    assert (watch.failure, said[-2:]) == (
        None,
        ["stopping; requests under way have 7.5 s", "stopped (exit code 0)"],
    )


def test_a_stop_that_is_to_be_at_once_waits_for_no_model(folder: Path) -> None:
    with ready_server(folder) as (watch, _, running), model(folder) as line:
        watch.request_stop(kill=False)
        assert line.recv(64) == b"7.5\n"
        watch.request_stop(kill=True)
        running.join(WAIT)
        assert not running.is_alive()
        watch.request_stop(kill=False)  # and nothing happens


def test_a_long_start_says_how_long_and_what_the_model_does(folder: Path) -> None:
    def stop_when_said(line: str) -> None:
        if re.fullmatch(r"starting, \d+ s: reading weights", line):
            watch.request_stop(kill=True)

    watch = watch_shell("echo reading weights; exec sleep 600", folder, [].append, stop_when_said)
    watch.run()
    assert (watch.ready, watch.failure) == (False, None)


def test_a_server_that_ends_by_itself_is_a_failure_with_its_last_line(folder: Path) -> None:
    log: list[str] = []
    watch = watch_shell("echo one; printf 'no such option'; exit 3", folder, log.append, [].append)
    watch.run()
    assert log == ["one", "no such option"]
    assert watch.failure == "the server did not start (exit code 3)\none\nno such option"


def test_a_log_that_cannot_be_written_ends_the_server(folder: Path) -> None:
    def full(line: str) -> None:
        raise OSError("no space left")

    watch = watch_shell("echo line; exec sleep 600", folder, full, [].append)
    watch.run()
    assert watch.failure == "the launcher failed: OSError('no space left')"
