"""`chatterbox say` as a process: streams that break, are interrupted or lose their reader."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.unit.client_fakes import SAMPLES, fake_server


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_a_stream_that_breaks_leaves_what_was_spoken(tmp_path: Path, extension: str) -> None:
    with fake_server() as server:
        command = [sys.executable, "-m", "chatterbox_client.cli", "say", "break", "--stream"]
        command += ["-o", f"part.{extension}", "--url", server.grpc_url]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"chatterbox: part.{extension} has the first 0.04 s\nchatterbox: the process of the engine has ended\n"
    )
    samples, rate = soundfile.read(tmp_path / f"part.{extension}")
    assert (len(samples) >= 960, rate) == (True, 24_000)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_a_full_disk_is_one_line_and_status_1(tmp_path: Path, extension: str) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    with fake_server() as server:
        command = [sys.executable, "-m", "chatterbox_client.cli", "say", "endless", "--stream"]
        command += ["-o", f"part.{extension}", "--url", server.grpc_url]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=60
        )
    *_, complaint = done.stderr.splitlines()
    assert (done.returncode, complaint) == (1, f"chatterbox: cannot write part.{extension}: System error.")


def wait_for(seen: Callable[[], bool]) -> None:
    """Until another process has done something that nothing here announces."""
    deadline, never = time.monotonic() + 60, threading.Event()
    while not seen():
        assert time.monotonic() < deadline
        never.wait(0.02)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_interrupted_stream_leaves_what_was_spoken_and_no_traceback(tmp_path: Path, protocol: str) -> None:
    with fake_server() as server:
        command = [sys.executable, "-m", "chatterbox_client.cli", "say", "endless", "--stream", "-o", "part.wav"]
        command += ["--protocol", protocol, "--url", server.grpc_url if protocol == "grpc" else server.http_url]
        said = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        wait_for((tmp_path / "part.wav").exists)
        said.send_signal(signal.SIGINT)
        _, complaint = said.communicate(timeout=60)
    assert said.returncode == 130, complaint
    assert re.fullmatch(r"chatterbox: part\.wav has the first [\d.]+ s\n", complaint)
    samples, _ = soundfile.read(tmp_path / "part.wav")
    assert len(samples) >= 960


def test_ctrl_c_while_the_server_speaks_is_no_traceback(tmp_path: Path) -> None:
    with fake_server() as server:
        command = [sys.executable, "-m", "chatterbox_client.cli", "say", "hang", "--url", server.http_url]
        said = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: bool(server.received))
        said.send_signal(signal.SIGINT)
        _, complaint = said.communicate(timeout=60)
    assert said.returncode == 130
    assert complaint == ""
    assert not list(tmp_path.iterdir())


def test_a_player_hears_a_stream_that_has_no_end_and_ends_it_by_going() -> None:
    with fake_server() as server:
        command = [sys.executable, "-m", "chatterbox_client.cli", "say", "endless", "--stream", "-o", "-"]
        command += ["--url", server.grpc_url]
        said = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert said.stdout is not None
        heard = said.stdout.read(4 * len(SAMPLES) // 3)  # of two chunks
        said.stdout.close()
        _, complaint = said.communicate(timeout=60)
        assert server.cancelled.get(timeout=60) == "endless"
    samples = np.frombuffer(heard, dtype="<i2").astype(np.float32) / 32_768
    np.testing.assert_allclose(samples, SAMPLES[: len(samples)], atol=1e-4)
    assert complaint.decode() == "chatterbox: [Errno 32] Broken pipe\n"
    assert said.returncode == 1
