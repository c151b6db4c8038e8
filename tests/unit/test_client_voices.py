"""The client's voices and their commands, without a server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from chatterbox_client import AsyncClient, Client, InvalidRequest, Lexicons, ServerError, VoiceInfo
from chatterbox_client.cli import app
from tests.unit.client_fakes import FakeAsyncTransport, FakeTransport

ANNA = {"voice": "anna", "bytes": 1_500_000, "content_hash": "ab" * 32, "created_at": "then", "updated_at": "now"}
INFO = VoiceInfo("anna", 1_500_000, "ab" * 32, "then", "now")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHATTERBOX_VOICE_KEY", raising=False)


def answering(result: object) -> FakeTransport:
    return FakeTransport({"result": np.array([[json.dumps(result).encode()]], dtype=np.object_)})


def sent(transport: FakeTransport) -> dict[str, Any]:
    model, tensors, outputs, _ = transport.calls[-1]
    assert (model, outputs) == ("chatterbox_voices", ("result",))
    assert all(tensor.shape == (1, 1) for tensor in tensors.values())
    return {name: tensor.item() for name, tensor in tensors.items()}


def test_each_method_sends_its_action_and_returns_what_the_server_tells(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(b"clip")
    transport = answering([ANNA])
    assert Client(transport=transport).voices.list() == [INFO]
    assert sent(transport) == {"action": b"list"}
    transport = answering(ANNA)
    voices = Client(transport=transport).voices
    assert voices.get("anna") == INFO
    assert sent(transport) == {"action": b"get", "voice": b"anna"}
    for clip in (tmp_path / "clip.wav", str(tmp_path / "clip.wav"), b"clip"):
        assert voices.add("anna", clip) == INFO
        assert sent(transport) == {"action": b"add", "voice": b"anna", "audio": b"clip"}
    voices.delete("anna")
    assert sent(transport) == {"action": b"delete", "voice": b"anna"}


LEXICONS = Lexicons({"Nguyen": "win"}, {"anna": {"York": "yoark"}}, "the file is gone")


def test_lexicons_are_listed() -> None:
    answer = answering(vars(LEXICONS))
    assert Client(transport=answer).voices.lexicons() == LEXICONS
    assert sent(answer) == {"action": b"lexicons"}
    client = AsyncClient(transport=FakeAsyncTransport(answer.result))
    assert asyncio.run(client.voices.lexicons()) == LEXICONS
    with pytest.raises(ServerError, match="not of this contract"):
        Client(transport=answering({})).voices.lexicons()


def test_the_command_lists_lexicons_and_says_what_is_wrong_with_their_file() -> None:
    done = run(answering(vars(LEXICONS)), "lexicons")
    assert [line.split() for line in done.stdout.splitlines()] == [["Nguyen", "win"], ["anna", "York", "yoark"]]
    assert "the file is gone" in done.stderr


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_changes_alone_bring_the_key(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variable":
        monkeypatch.setenv("CHATTERBOX_VOICE_KEY", "secret")
    key = {"voice_key": "secret"} if how == "argument" else {}
    transport = answering(ANNA)
    voices = Client(transport=transport, **key).voices
    voices.get("anna")
    assert "key" not in sent(transport)
    voices.add("anna", b"clip")
    assert sent(transport)["key"] == b"secret"
    voices.delete("anna")
    assert sent(transport) == {"action": b"delete", "voice": b"anna", "key": b"secret"}
    awaited = FakeAsyncTransport(transport.result)

    async def run() -> None:
        async with AsyncClient(transport=awaited, **key) as client:
            await client.voices.delete("anna")
            assert sent(awaited.sync)["key"] == b"secret"
            await client.voices.add("anna", b"clip")

    asyncio.run(run())
    assert sent(awaited.sync)["key"] == b"secret"


def test_the_asynchronous_client_sends_the_same() -> None:
    async def run() -> None:
        transport = FakeAsyncTransport({"result": np.array([[json.dumps(ANNA).encode()]], dtype=np.object_)})
        async with AsyncClient(transport=transport) as client:
            assert await client.voices.add("anna", b"clip") == INFO
            assert await client.voices.get("anna") == INFO
            await client.voices.delete("anna")
            assert sent(transport.sync) == {"action": b"delete", "voice": b"anna"}
            transport.sync.result = answering([ANNA]).result
            assert await client.voices.list() == [INFO]

    asyncio.run(run())


@pytest.mark.parametrize("result", [{}, {"result": np.array([[b"no JSON"]], dtype=np.object_)}])
def test_an_answer_of_another_kind_is_the_servers_error(result: Any) -> None:
    with pytest.raises(ServerError, match="not of this contract"):
        Client(transport=FakeTransport(result or {"other": np.zeros((1, 1))})).voices.list()


def test_a_description_that_lacks_something_is_the_servers_error() -> None:
    with pytest.raises(ServerError, match="not of this contract"):
        Client(transport=answering({"voice": "anna"})).voices.get("anna")


def test_what_cannot_be_sent_is_refused_before() -> None:
    voices = Client(transport=answering(ANNA)).voices
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        voices.get("\ud800")
    with pytest.raises(FileNotFoundError):
        voices.add("anna", "no such file")


def run(transport: FakeTransport, *arguments: str) -> Any:
    def connect(url: str | None, protocol: Any, *, timeout: float) -> Client:
        return Client(url, protocol, timeout=timeout, transport=transport)

    return CliRunner().invoke(app, ["voices", *arguments], obj=connect)


def test_the_commands_show_voices_in_lines(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"clip")
    line = "anna                       1.50 MB  now  abababababab\n"
    assert run(answering([ANNA, ANNA]), "list").stdout == 2 * line
    assert run(answering(ANNA), "get", "anna").stdout == line
    assert run(answering(ANNA), "add", "anna", str(clip)).stdout == line
    assert run(answering(ANNA), "import", str(tmp_path)).stdout == line
    assert run(answering(ANNA), "delete", "anna").stdout == ""


def test_an_import_goes_on_after_a_refused_clip_and_ends_with_status_1(tmp_path: Path) -> None:
    for name in ("a.wav", "b.MP3", "c.txt"):
        (tmp_path / name).write_bytes(b"clip")
    transport = FakeTransport(InvalidRequest("the reference audio is silent"))
    result = run(transport, "import", str(tmp_path))
    assert result.exit_code == 1
    assert len(transport.calls) == 2
    assert [line.split("/")[-1] for line in result.stderr.splitlines()] == [
        "a.wav: the reference audio is silent",
        "b.MP3: the reference audio is silent",
    ]


def test_headers_of_the_command_line_go_to_the_client() -> None:
    seen: list[dict[str, str]] = []

    def connect(url: str | None, protocol: Any, *, timeout: float, headers: dict[str, str]) -> Client:
        seen.append(headers)
        return Client(transport=answering([]))

    runner = CliRunner()
    assert runner.invoke(app, ["--header", "key: a:b", "--header", "x:y", "voices", "list"], obj=connect).exit_code == 0
    assert seen == [{"key": "a:b", "x": "y"}]
    assert runner.invoke(app, ["--header", "no colon", "voices", "list"], obj=connect).exit_code == 2
