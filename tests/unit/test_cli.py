"""The command `chatterbox`, with a transport that answers at once."""

from __future__ import annotations

import inspect
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from chatterbox_client import Client, ConnectionFailed, InvalidRequest
from chatterbox_client.cli import app
from tests.unit.client_fakes import METADATA, SAMPLES, FakeTransport, fake_server

OPTIONS: dict[str, tuple[str, Any]] = {
    "voice": ("--voice", "emma"),
    "language": ("--language", "fr"),
    "preset": ("--preset", "calm"),
    "exaggeration": ("--exaggeration", 0.75),
    "cfg_weight": ("--cfg-weight", 0.25),
    "temperature": ("--temperature", 0.5),
    "top_p": ("--top-p", 0.875),
    "min_p": ("--min-p", 0.125),
    "repetition_penalty": ("--repetition-penalty", 1.5),
    "top_k": ("--top-k", 40),
    "seed": ("--seed", 7),
    "max_seconds": ("--max-seconds", 8.0),
}


class Connections:
    """Stands for the `Client` class: notes how it was called and gives a client of the fake transport."""

    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport
        self.calls: list[tuple[Any, Any, Any]] = []

    def __call__(self, url: Any, protocol: Any, *, timeout: Any, **others: Any) -> Client:
        self.calls.append((url, protocol, timeout))
        return Client(url, protocol, timeout=timeout, transport=self.transport, **others)


Run = Callable[..., Any]


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def connections(transport: FakeTransport) -> Connections:
    return Connections(transport)


@pytest.fixture
def run(connections: Connections, tmp_path: Path) -> Iterator[Run]:
    def invoke(*arguments: str, stdin: str | bytes | None = None, env: dict[str, str] | None = None) -> Any:
        runner = CliRunner(env={"CHATTERBOX_URL": None, "CHATTERBOX_GRPC_URL": None, **(env or {})})
        return runner.invoke(app, list(arguments), input=stdin, obj=connections)

    before = Path.cwd()
    os.chdir(tmp_path)
    yield invoke
    os.chdir(before)


def test_text_is_spoken_into_a_file_and_the_figures_go_to_stderr(run: Run, tmp_path: Path) -> None:
    done = run("say", "Hello there.", "-o", "out.flac")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == "out.flac: 0.12 s of audio, RTF 0.250, seed 7\n"
    samples, rate = soundfile.read(tmp_path / "out.flac", dtype="float32")
    assert rate == 24_000
    np.testing.assert_allclose(samples, SAMPLES, atol=1e-4)


def test_the_default_file_is_speech_wav(run: Run, tmp_path: Path) -> None:
    assert run("say", "Hello.").exit_code == 0
    assert soundfile.info(tmp_path / "speech.wav").subtype == "PCM_16"


@pytest.mark.parametrize("arguments", [["say"], ["say", "-"]], ids=["nothing", "dash"])
def test_text_comes_from_standard_input(run: Run, transport: FakeTransport, arguments: list[str]) -> None:
    assert run(*arguments, stdin="Grüße aus\nder Pipe.\n".encode()).exit_code == 0
    assert transport.calls[0][1]["text"].item().decode() == "Grüße aus\nder Pipe."


def test_standard_input_that_is_not_utf_8_is_a_usage_error(run: Run, transport: FakeTransport) -> None:
    done = run("say", stdin=b"\xff\xfe")
    assert done.exit_code == 2
    assert "not UTF-8" in done.stderr
    assert not transport.calls


def test_raw_samples_go_to_stdout_and_nothing_else_does(run: Run, tmp_path: Path) -> None:
    done = run("say", "Hello.", "-o", "-")
    assert done.exit_code == 0
    samples = np.frombuffer(done.stdout_bytes, dtype="<i2").astype(np.float32) / 32_768
    np.testing.assert_allclose(samples, SAMPLES, atol=1e-4)
    assert "seed 7" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["-", "out.wav"])
def test_a_stream_is_written_chunk_by_chunk_and_its_first_sound_is_timed(
    run: Run, connections: Connections, tmp_path: Path, output: str
) -> None:
    done = run("say", "Hello.", "--stream", "-o", output, "--seed", "7")
    assert done.exit_code == 0, done.stderr
    raw = done.stdout_bytes if output == "-" else (tmp_path / output).read_bytes()[44:]
    samples = np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32_768
    np.testing.assert_allclose(samples, SAMPLES, atol=1e-4)
    assert re.fullmatch(rf"{output}: 0\.12 s of audio, the first after \d+ ms, RTF 0\.250, seed 7\n", done.stderr)
    assert connections.calls[0][1] == "grpc"
    assert connections.transport.calls[0][0] == "chatterbox_stream"


def test_a_player_hears_a_stream_that_has_no_end_and_ends_it_by_going() -> None:
    with fake_server() as server:
        command = [sys.executable, "-m", "chatterbox_client.cli", "say", "endless", "--stream", "-o", "-"]
        command += ["--url", server.grpc_url]
        said = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert said.stdout is not None
        heard = said.stdout.read(4 * len(SAMPLES) // 3)  # of two chunks
        said.stdout.close()
        _, complaint = said.communicate(timeout=60)
        assert server.given_up.get(timeout=60) == "endless"
    samples = np.frombuffer(heard, dtype="<i2").astype(np.float32) / 32_768
    np.testing.assert_allclose(samples, SAMPLES[: len(samples)], atol=1e-4)
    assert complaint.decode() == "chatterbox: [Errno 32] Broken pipe\n"
    assert said.returncode == 1


def test_without_options_only_the_text_is_sent(run: Run, transport: FakeTransport) -> None:
    run("say", "Hello.")
    assert set(transport.calls[0][1]) == {"text"}


def test_every_option_reaches_the_server(run: Run, transport: FakeTransport, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    options = [word for option, value in OPTIONS.values() for word in (option, str(value))]
    done = run("say", "Hello.", "--reference-audio", "clip.wav", *options)
    assert done.exit_code == 0, done.stderr
    tensors = {name: tensor.item() for name, tensor in transport.calls[0][1].items()}
    expected = {name: value.encode() if isinstance(value, str) else value for name, (_, value) in OPTIONS.items()}
    assert tensors == {"text": b"Hello.", "reference_audio": b"RIFF", **expected}


def test_the_command_has_an_option_for_every_parameter_of_speak() -> None:
    command = typer.main.get_command(app).commands["say"]  # type: ignore[attr-defined]
    missing = set(inspect.signature(Client.speak).parameters) - {"self"} - {option.name for option in command.params}
    assert not missing


def test_one_of_several_models_speaks_and_streams(run: Run, connections: Connections) -> None:
    for arguments in ([], ["--stream"]):
        assert run("say", "Hello.", "--model", "turbo", *arguments).exit_code == 0
    assert [call[0] for call in connections.transport.calls] == ["turbo", "turbo_stream"]


def test_the_connections_options_reach_the_client(run: Run, connections: Connections) -> None:
    run("say", "Hello.")
    run("say", "Hello.", "--url", "tts:81", "--protocol", "grpc", "--timeout", "5")
    run("say", "Hello.", env={"CHATTERBOX_URL": "tts:82"})
    run("status", env={"CHATTERBOX_URL": "tts:82", "CHATTERBOX_GRPC_URL": "tts:83"})
    run("say", "Hello.", "--stream", env={"CHATTERBOX_URL": "tts:82", "CHATTERBOX_GRPC_URL": "tts:83"})
    assert connections.calls == [
        (None, "http", 300),
        ("tts:81", "grpc", 5),
        ("tts:82", "http", 300),
        ("tts:82", "http", 10),
        ("tts:83", "grpc", 300),
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["say", "Hi.", "-o", "out.aac"], ".flac"),
        (["say", "Hi.", "-o", "nowhere/out.wav"], "folder"),
        (["say", "Hi.", "--temperature", "hot"], "--temperature"),
        (["say", "Hi.", "--protocol", "smtp"], "smtp"),
        (["say", "Hi.", "--reference-audio", "none.wav"], "none.wav"),
        (["sing", "Hi."], "sing"),
    ],
    ids=lambda part: part[-1] if isinstance(part, list) else "",
)
def test_wrong_usage_exits_with_2_before_anything_is_sent(
    run: Run, transport: FakeTransport, arguments: list[str], complaint: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert complaint in done.stderr
    assert not transport.calls


def test_a_url_with_a_scheme_is_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["say", "Hi.", "-o", str(tmp_path / "a.wav"), "--url", "http://tts:81"])
    assert done.exit_code == 2
    assert "scheme" in done.stderr


def test_a_refusal_is_one_line_on_stderr_and_exit_status_1(run: Run, transport: FakeTransport, tmp_path: Path) -> None:
    transport.result = InvalidRequest("temperature must be\n  at most 5", status="400")
    done = run("say", "Hello.")
    assert done.exit_code == 1
    assert done.stderr == "chatterbox: temperature must be at most 5\n"
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_one_line_and_exit_status_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.wav").mkdir()
    done = run("say", "Hello.", "-o", "out.wav")
    assert done.exit_code == 1
    assert done.stderr.startswith("chatterbox: ")
    assert done.stderr.count("\n") == 1


def test_status_prints_what_the_model_takes_and_gives(run: Run) -> None:
    done = run("status")
    assert done.exit_code == 0
    assert "chatterbox: ready, version 1, python" in done.stdout
    for tensor in (*METADATA["inputs"], *METADATA["outputs"]):
        assert tensor["name"] in done.stdout
        assert tensor["datatype"] in done.stdout


def test_status_of_a_model_that_is_not_ready_exits_with_1(run: Run, transport: FakeTransport) -> None:
    transport.is_ready = False
    done = run("status")
    assert done.exit_code == 1
    assert "not ready" in done.stderr


def test_a_server_that_is_not_there_is_one_line(run: Run, transport: FakeTransport) -> None:
    transport.result = ConnectionFailed("localhost:8000: Connection refused")
    assert run("say", "Hello.").stderr == "chatterbox: localhost:8000: Connection refused\n"


def test_on_a_terminal_it_asks_for_text_and_keeps_raw_samples_off_the_screen(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        for arguments, complaint in ((["say"], "pipe it"), (["say", "Hi.", "-o", "-"], "not for a terminal")):
            done = subprocess.run(
                [sys.executable, "-m", "chatterbox_client.cli", *arguments],
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.PIPE,
                cwd=tmp_path,
                check=False,
            )
            assert done.returncode == 2
            assert complaint in done.stderr.decode()
    finally:
        os.close(ours)
        os.close(theirs)
