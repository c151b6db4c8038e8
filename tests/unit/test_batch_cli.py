"""The command `chatterbox batch` before anything is spoken: wrong usage, and a run that has nothing to do."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chatterbox_batch.cli import FORMATS, batch_app
from chatterbox_client import Client, ConnectionFailed
from chatterbox_gateway import output
from tests.unit.batch_fakes import FakeSpeaker, speak
from tests.unit.client_fakes import FakeTransport


class Away(FakeTransport):
    """No server."""

    def ready(self, model: str, timeout: float | None) -> bool:
        raise ConnectionFailed("nobody is there")


class Connect:
    """Stands for the `Client` class."""

    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport

    def __call__(self, url: Any, protocol: Any, **others: Any) -> Client:
        return Client(url, protocol, transport=self.transport, **others)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": "a", "text": "Hello."}')
    return path


def invoke(*arguments: object, transport: FakeTransport | None = None) -> Any:
    return CliRunner().invoke(batch_app, list(map(str, arguments)), obj=Connect(transport or FakeTransport()))


def said(done: Any) -> str:
    return re.sub(r"[\s\u2502]+", " ", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{folder}/none.jsonl", "{folder}/out"], "no such file or folder"),
        (["{folder}/texts.jsonl", "nowhere://out"], "nowhere://out"),
        (["{folder}/texts.jsonl", "{folder}/out", "--format", "wma"], "'wma' is none of mp3"),
        (["{folder}/texts.jsonl", "{folder}/out", "--checkpoint", "tiny", "--url", "localhost:8001"], "not both"),
        (["{folder}/texts.jsonl", "{folder}/out", "--part-chars", "3"], "--part-chars"),
        (["{folder}/texts.jsonl"], "OUT"),
    ],
)
def test_wrong_usage_has_status_2_and_says_what_is_wrong(texts: Path, arguments: list[str], complaint: str) -> None:
    done = invoke(*(argument.format(folder=texts.parent) for argument in arguments))
    assert done.exit_code == 2
    assert complaint in said(done)


def test_a_sampling_rate_that_the_format_lacks_is_refused(texts: Path, tmp_path: Path) -> None:
    done = invoke(texts, tmp_path / "out", "--format", "mp3", "--sample-rate", "9000")
    assert done.exit_code == 1
    assert "mp3 has 8000" in said(done)


def test_the_formats_are_the_gateways() -> None:
    assert set(FORMATS) == set(output.FORMATS)


@pytest.mark.parametrize(
    ("transport", "complaint"),
    [(Away(), "nobody is there"), (FakeTransport(is_ready=False), "its model chatterbox is not ready")],
)
def test_a_server_that_is_not_ready_ends_the_command_at_once(
    texts: Path, tmp_path: Path, transport: FakeTransport, complaint: str
) -> None:
    done = invoke(texts, tmp_path / "out", transport=transport)
    assert done.exit_code == 1
    assert complaint in said(done)
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_a_run_with_nothing_to_do_needs_neither_server_nor_ray(texts: Path, tmp_path: Path) -> None:
    speak(str(texts), tmp_path / "out", FakeSpeaker())
    done = invoke(texts, tmp_path / "out", transport=Away())
    assert done.exit_code == 0
    assert "0 rows, 0 failed" in said(done)
    assert "ray" not in sys.modules
