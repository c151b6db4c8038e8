"""`python -m loadtest` against the real server: in one process, with two workers, and against servers that fail."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatterbox_client import Client
from chatterbox_engine.launcher.ports import ReservedPorts
from chatterbox_engine.launcher.server import TritonServer
from loadtest.summary import disagreements

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]


def drive(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest", "--users", "4", "--duration", "6", "--out", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def ports_of(server: TritonServer) -> list[str]:
    addresses = zip(("http", "grpc", "metrics"), (server.http_url, server.grpc_url, server.metrics_url), strict=True)
    options = [(f"--{name}-port", address.rpartition(":")[2]) for name, address in addresses]
    return ["--host", "127.0.0.1", *(part for option in options for part in option)]


def content(folder: Path) -> dict[str, Any]:
    it: dict[str, Any] = json.loads((folder / "mixed" / "report.json").read_text())
    return it


def test_a_load_test_passes_counts_what_the_server_counts_and_writes_its_report(
    server: TritonServer, tmp_path: Path
) -> None:
    done = drive(tmp_path, *ports_of(server), "--voices", "default")
    assert done.returncode == 0, done.stderr
    result = content(tmp_path)
    assert (result["verdict"], result["failed"]) == ("passed", 0)
    assert disagreements(result) == []
    assert set(result["protocols"]) == {"http", "grpc", "stream"}
    assert [row["users"] for row in result["stages"]] == [1, 1, 2, 4]
    assert (tmp_path / "mixed" / "concurrency.png").stat().st_size > 5000
    assert "4 users" in done.stderr


@pytest.mark.full
def test_two_workers_make_the_load_together_in_several_voices_and_no_record_is_lost(
    server: TritonServer, tmp_path: Path
) -> None:
    ports = ReservedPorts("127.0.0.1", [0])
    ports.release()
    done = drive(tmp_path, *ports_of(server), "--workers", "2", "--master-port", str(ports.numbers[0]))
    assert done.returncode == 0, done.stderr
    result = content(tmp_path)
    assert result["requests"] > 4
    assert disagreements(result) == []
    offered = set(result["speaking with"].split(", "))
    assert (len(offered), "default" in offered) == (4, True)
    assert len(result["voices"]) > 1
    assert set(result["voices"]) <= offered
    with Client(server.http_url) as client:
        assert offered.isdisjoint(voice.name for voice in client.voices.list())


@pytest.mark.full
def test_requests_that_fail_make_the_load_test_fail_and_are_listed(server: TritonServer, tmp_path: Path) -> None:
    done = drive(tmp_path, *ports_of(server), "--voices", "nobody", "--duration", "2")
    assert done.returncode == 1
    assert "requests failed" in done.stderr
    assert any("there is no voice 'nobody'" in error for error in content(tmp_path)["errors"])


def test_a_server_that_is_not_there_makes_the_load_test_fail(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = str(closed.getsockname()[1])
        done = drive(tmp_path, "--host", "127.0.0.1", "--http-port", port, "--metrics-port", port)
    assert done.returncode == 1
    assert "refused" in done.stderr
