"""A model's process and those above it: it ends with its server, and drains when the launcher says so."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatterbox_engine.serving.supervision import CONTROL, DRAINED

WAIT = 20.0

# It does not end by itself: neither its threads nor what runs at a regular end.
MODEL = """
import atexit, os, sys, threading
from chatterbox_engine.serving.supervision import supervise

def drain(seconds, drained):
    print(seconds, flush=True)
    drained()

supervise(sys.argv[1], drain)
atexit.register(threading.Event().wait)
threading.Thread(target=threading.Event().wait).start()
print(os.getpid(), flush=True)
"""

SERVER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:  # not pytest's: a socket's path may have 107 characters
        yield path


def start(folder: str) -> tuple[subprocess.Popen[str], int]:
    """A server, and the pid of its model, which is up."""
    command = [sys.executable, "-c", SERVER, MODEL, folder]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, os.pidfd_open(int(server.stdout.readline()))


def check_the_model_ends_with(server: subprocess.Popen[str], model: int) -> None:
    server.kill()
    ended, _, _ = select.select([model], [], [], WAIT)
    if not ended:
        signal.pidfd_send_signal(model, signal.SIGKILL)
    os.close(model)
    server.communicate()
    assert ended, "the model's process still ran"


def test_a_model_s_process_ends_with_its_server_whatever_it_waits_for(folder: str) -> None:
    check_the_model_ends_with(*start(folder))


def test_a_model_drains_when_the_launcher_says_so_and_lives_on_without_it(folder: str) -> None:
    with socket.socket(socket.AF_UNIX) as launcher:
        launcher.bind(str(Path(folder) / CONTROL))
        launcher.listen()
        server, model = start(folder)
        line, _ = launcher.accept()
        with line:
            line.sendall(b"2.5\n")
            assert line.recv(64) == DRAINED
    assert server.stdout is not None
    assert server.stdout.readline() == "2.5\n"
    assert select.select([model], [], [], 0) == ([], [], [])
    check_the_model_ends_with(server, model)
