"""The command `chatterbox-gateway`, in front of a server that speaks Triton's protocol."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from chatterbox_gateway.cli import app
from tests.server.front import Front
from tests.unit.client_fakes import fake_server


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner(env={"CHATTERBOX_GRPC_URL": None, "CHATTERBOX_VOICE_KEY": None, **environment}).invoke(
        app, list(arguments)
    )


def test_it_supports_its_options(tmp_path: Path) -> None:
    options = ["--model", "turbo", "--model", "nano", "--change-voices", "--timeout", "7", "--log-format", "json"]
    options += ["--header", "x-key: 1", "--max-characters", "100", "--first-chunk-tokens", "2"]
    keys = {"CHATTERBOX_GATEWAY_KEYS": "anna:one two", "CHATTERBOX_VOICE_KEY": "secret"}
    with fake_server() as fake, Front(fake.grpc_url, tmp_path / "log", options, environment=keys) as front:
        url = f"http://{front.address}/v1"
        assert httpx.get(f"http://{front.address}/health").status_code == 200
        assert httpx.get(f"{url}/models").status_code == 401
        with openai.OpenAI(base_url=url, api_key="two") as client:
            assert [model.id for model in client.models.list()] == ["turbo", "nano"]
            client.audio.speech.create(model="nano", voice="anna", input="Hello.", speed=2.0)
        bearer = {"Authorization": "Bearer one"}
        spoken = httpx.post(f"{url}/audio/speech", json={"input": "x" * 60}, headers=bearer)
        assert spoken.status_code == 200
        limited = httpx.post(f"{url}/audio/speech", json={"input": "x" * 60}, headers=bearer)
        assert (limited.status_code, 10 <= int(limited.headers["Retry-After"]) <= 12) == (429, True)
        allowed = httpx.put(f"{url}/audio/voices", headers={"Authorization": "Bearer one"}).headers["Allow"]
        assert "POST" in allowed
    assert fake.metadata[-1]["x-key"] == "1"
    assert struct.unpack("<i", fake.received[-1]["first_chunk_tokens"][2]) == (2,)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    requests = [line for line in lines if line["message"] == "request"]
    assert [(line["route"], line["key"]) for line in requests if line["status"] in (200, 429)][1:] == [
        ("POST /v1/audio/speech", "key2"),
        ("POST /v1/audio/speech", "anna"),
        ("POST /v1/audio/speech", "anna"),
    ]
    assert not [line for line in requests if "/health" in line["route"]]


def test_headers_come_from_the_variable_too(tmp_path: Path) -> None:
    variable = {"CHATTERBOX_HEADERS": "x-key:1 x-other:2"}
    with fake_server() as fake, Front(fake.grpc_url, tmp_path / "log", environment=variable) as front:
        httpx.post(f"http://{front.address}/v1/audio/speech", json={"input": "Hello."}).raise_for_status()
    assert (fake.metadata[-1]["x-key"], fake.metadata[-1]["x-other"]) == ("1", "2")


def test_it_ends_soon_during_an_endless_stream(tmp_path: Path) -> None:
    def listen(url: str) -> None:
        body = {"input": "endless", "response_format": "pcm"}
        with httpx.stream("POST", url, json=body) as answer:
            for _ in answer.iter_bytes():
                heard.set()

    heard = threading.Event()
    with fake_server() as fake, ThreadPoolExecutor() as threads:
        with Front(fake.grpc_url, tmp_path / "log", ["--grace-seconds", "0.5"]) as front:
            listening = threads.submit(listen, f"http://{front.address}/v1/audio/speech")
            assert heard.wait(20)
        with pytest.raises(httpx.TransportError):
            listening.result()


def test_it_ends_with_its_owner() -> None:
    owner = subprocess.Popen(["sleep", "600"])
    command = [sys.executable, "-m", "chatterbox_gateway.cli", "--port", "0", "--owner", str(owner.pid)]
    with owner, subprocess.Popen(command, stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        assert gateway.stdout.readline().startswith(b"Running on ")
        owner.kill()
        assert gateway.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "http://localhost:8001"], "address for the protocol http"),
        (["--port", "70000"], "65535"),
        (["--header", "x-key"], 'give "NAME: VALUE"'),
        (["--change-voices"], "CHATTERBOX_VOICE_KEY is not set"),
        (["--cors", "app.example.com"], "is not an origin"),
        (["--key", ""], "--key: is empty"),
        (["--key", "one", "--key", ""], "--key: is empty"),
        (["--key", "anna:"], "--key: is empty"),
        (["--key", ":one"], "--key: is empty"),
        (["--key", "anna:one", "--key", "anna:two"], "the name anna stands twice"),
        (["--key", "anna:one", "--batch-key", "berta"], "--batch-key: no key has the name berta"),
        (["--idle-unload", "60", "--url", "ipv4:10.0.0.1:8001,10.0.0.2:8001"], "--idle-unload: it is for one server"),
        (["--log-format", "xml"], "'text', 'json'"),
    ],
)
def test_wrong_options_are_wrong_usage(options: list[str], message: str) -> None:
    done = run(*options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("--port", str(taken.getsockname()[1]), CHATTERBOX_GATEWAY_KEYS="")
    assert done.exit_code == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "address already in use" in done.stderr.lower()
