"""The command `chatterbox openai`, as far as it goes without a server."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from chatterbox_client.cli import app
from chatterbox_client.openai.server import SpeechApi


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner(env={"CHATTERBOX_URL": None, **environment}).invoke(app, list(arguments))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How the front would have been made and run."""
    calls: list[dict[str, Any]] = []
    init = SpeechApi.__init__

    def note(self: SpeechApi, transport: Any, models: Any, **options: Any) -> None:
        calls.append({"transport": transport, "models": models, **options})
        init(self, transport, models, **options)

    monkeypatch.setattr(SpeechApi, "__init__", note)
    monkeypatch.setattr(web, "run_app", lambda _app, **options: calls.append(options))
    return calls


def test_it_listens_to_this_machine_alone_and_serves_one_model(made: list[dict[str, Any]]) -> None:
    assert run("openai").exit_code == 0
    api, listening = made
    assert (api["models"], list(api["keys"]), api["timeout"]) == (["chatterbox"], [], 300.0)
    assert api["transport"]._url == "localhost:8001"
    assert listening == {"host": "127.0.0.1", "port": 8080, "handler_cancellation": True}


def test_what_it_is_told_it_heeds(made: list[dict[str, Any]]) -> None:
    options = ["--url", "tts:9001", "--model", "turbo", "--model", "nano", "--host", "0.0.0.0", "--port", "80"]
    done = run("--header", "x-key: 1", "openai", *options, "--timeout", "5", CHATTERBOX_OPENAI_KEYS="one two")
    assert done.exit_code == 0, done.stderr
    api, listening = made
    assert (api["models"], list(api["keys"]), api["timeout"]) == (["turbo", "nano"], ["one", "two"], 5.0)
    assert (api["transport"]._url, api["transport"]._headers) == ("tts:9001", {"x-key": "1"})
    assert (listening["host"], listening["port"]) == ("0.0.0.0", 80)


def test_a_wrong_address_is_wrong_usage() -> None:
    done = run("openai", "--url", "http://localhost:8001")
    assert done.exit_code == 2
    assert "without a scheme" in done.stderr


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("openai", "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "address already in use" in done.stderr


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("chatterbox_client.openai")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
    done = run("openai")
    assert done.exit_code == 1
    assert "install chatterbox-client[openai]" in done.stderr
