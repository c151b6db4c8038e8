"""The command `chatterbox`, with a transport that answers at once."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from chatterbox_client import Client, ConnectionFailed, InvalidRequest, NotFound
from chatterbox_client.cli import app
from chatterbox_engine.serving.contract import SAMPLING
from chatterbox_engine.types import SamplingParams
from tests.unit.client_fakes import METADATA, SAMPLES, FakeTransport

VOICE = {"voice": "anna", "bytes": 1, "content_hash": "", "created_at": "", "updated_at": ""}
OPTIONS: dict[str, tuple[str, Any]] = {
    "voice": ("--voice", "emma"),
    "language": ("--language", "fr"),
    "text_normalization": ("--text-normalization", "spoken"),
    "markup": ("--markup", "auto"),
    "preset": ("--preset", "calm"),
    "priority": ("--priority", "batch"),
    "guard": ("--guard", "retry"),
    "guard_retries": ("--guard-retries", 3),
    "exaggeration": ("--exaggeration", 0.75),
    "cfg_weight": ("--cfg-weight", 0.25),
    "temperature": ("--temperature", 0.5),
    "top_p": ("--top-p", 0.875),
    "min_p": ("--min-p", 0.125),
    "repetition_penalty": ("--repetition-penalty", 1.5),
    "top_k": ("--top-k", 40),
    "num_steps": ("--num-steps", 6),
    "time_shift_tau": ("--time-shift-tau", 0.25),
    "omnivoice_schedule_t_shift": ("--omnivoice-schedule-t-shift", 0.75),
    "position_temperature": ("--position-temperature", 1.5),
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


def test_text_comes_from_a_file_and_the_name_of_one_is_not_spoken(
    run: Run, transport: FakeTransport, tmp_path: Path
) -> None:
    (tmp_path / "story.txt").write_text("\ufeffOnce upon a time.\n", encoding="utf-8")
    assert run("say", "--file", "story.txt").exit_code == 0
    assert transport.calls.pop()[1]["text"].item().decode() == "Once upon a time."
    for arguments, complaint in (
        (["story.txt"], "--file story.txt"),
        (["Hello.", "--file", "story.txt"], "not both"),
        (["--file", "none.txt"], "none.txt"),
    ):
        done = run("say", *arguments)
        assert done.exit_code == 2
        assert complaint in " ".join(done.stderr.replace("│", " ").split())
    assert not transport.calls
    assert run("say", "word " * 2000).exit_code == 0  # longer than any path


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


def test_the_help_tells_every_range_and_default(run: Run) -> None:
    shown = " ".join(run("say", "--help", env={"COLUMNS": "400"}).stdout.split())
    for name, range_ in SAMPLING.items():
        option = shown.partition(f"--{name.replace('_', '-')} ")[2].partition(" --")[0]
        low = rf"above {range_.low:g}" if range_.open_low else rf"{range_.low:g}( \(\w+\))?"
        bounds = rf"{low} to {range_.high:.0f}"
        assert re.search(bounds, option), (name, option)
        default = getattr(SamplingParams(), name)
        assert re.search(rf"\[default: \({default:g}\b", option) or name == "top_k", (name, option)


def test_the_command_has_an_option_for_every_parameter_of_speak() -> None:
    command = typer.main.get_command(app).commands["say"]  # type: ignore[attr-defined]
    missing = (
        set(inspect.signature(Client.speak).parameters)
        - {"self", "word_times"}
        - {option.name for option in command.params}
    )
    assert not missing


def test_one_of_several_models_speaks_and_streams(run: Run, connections: Connections) -> None:
    for arguments in ([], ["--stream"]):
        assert run("say", "Hello.", "--model", "turbo", *arguments).exit_code == 0
    assert [call[0] for call in connections.transport.calls] == ["turbo", "turbo_stream"]


def test_the_connections_options_reach_the_client(run: Run, connections: Connections) -> None:
    run("say", "Hello.")
    run("say", "Hello.", "--url", "tts:81", "--protocol", "grpc", "--timeout", "5")
    run("status")
    run("say", "Hello.", "--stream")
    run("say", "Hello.", "--stream", "--protocol", "http")
    assert connections.calls == [
        (None, "http", 300),
        ("tts:81", "grpc", 5),
        (None, "http", 10),
        (None, "grpc", 300),
        (None, "http", 300),
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


def test_a_url_of_another_protocol_is_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["say", "Hi.", "-o", str(tmp_path / "a.wav"), "--url", "grpc://tts:81"])
    assert done.exit_code == 2
    assert "--url" in done.stderr
    assert "protocol grpc" in " ".join(done.stderr.split())


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


PAGE = """
# TYPE chatterbox_info gauge
chatterbox_info{checkpoint="/models/other",device="cuda:1",family="turbo",model="turbo",optimizations=""} 1.000000
chatterbox_info{checkpoint="/models/one",device="cuda:0",family="english",model="chatterbox",optimizations="bfloat16"} 1
chatterbox_voices_cached{model="turbo"} 9.000000
chatterbox_voices_cached{model="chatterbox"} 3.000000
"""


@contextmanager
def metrics_page() -> Iterator[str]:
    """The address of a server whose every page is PAGE."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_status_prints_what_is_served_and_what_the_model_takes_and_gives(run: Run, transport: FakeTransport) -> None:
    transport.result = {"result": np.array([[json.dumps([VOICE, VOICE]).encode()]], dtype=np.object_)}
    with metrics_page() as address:
        done = run("status", "--metrics-url", address)
        other = run("status", "--model", "turbo", env={"CHATTERBOX_METRICS_URL": f"http://{address}/"})
        unknown = run("status", "--model", "nano", "--metrics-url", address)
    assert done.exit_code == 0, done.stderr
    first = done.stdout.splitlines()
    assert first[:6] == [
        "chatterbox: ready, version 1, python",
        "checkpoint: /models/one (english)",
        "device: cuda:0",
        "optimisations: bfloat16",
        "voices in memory: 3",
        "stored voices: 2",
    ]
    assert "checkpoint: /models/other (turbo)" in other.stdout
    assert f"unknown, the metrics at {address} have no model nano" in unknown.stdout
    for tensor in (*METADATA["inputs"], *METADATA["outputs"]):
        assert tensor["name"] in done.stdout
        assert tensor["datatype"] in done.stdout


def test_status_says_so_where_it_reaches_no_metrics_and_no_voices(run: Run, transport: FakeTransport) -> None:
    transport.result = NotFound("Request for unknown model: 'chatterbox_voices'")
    done = run("status", "--metrics-url", "127.0.0.1:9")
    assert done.exit_code == 0
    assert "checkpoint, device: unknown, no metrics at 127.0.0.1:9" in done.stdout
    assert "stored voices: this server does not say" in done.stdout


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
