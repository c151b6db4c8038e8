"""`chatterbox say --show-text` and `--lexicon`: what would be spoken, and what to say for a word."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from chatterbox_client import AsyncClient, Client
from chatterbox_client.cli import app
from tests.unit.client_fakes import FakeAsyncTransport, FakeTransport, spoken

PASSAGE = {"text": "Ask win.", "start": 0, "end": 11, "language": "en", "pause": 1.0}
SHOWN = {
    "stages": [{"stage": "clean", "passages": [{**PASSAGE, "text": "Ask Nguyen."}]}],
    "segments": [PASSAGE],
    "lead": 0.0,
    "notes": ["a block of code is left out"],
}
ANSWER = {**spoken(), "stats": np.array([[json.dumps(SHOWN).encode()]], dtype=np.object_)}


def say(transport: FakeTransport, *arguments: str) -> Any:
    make = lambda url, protocol, **others: Client(url, protocol, transport=transport, **others)  # noqa: E731
    return CliRunner().invoke(app, ["say", "Ask Nguyen.", *arguments], obj=make)


def test_the_text_is_shown_and_nothing_is_spoken() -> None:
    transport = FakeTransport(ANSWER)
    done = say(transport, "--show-text", "--text-normalization", "plain")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == [
        "clean:",
        "  Ask Nguyen.",
        "segments:",
        "  [0:11] Ask win.  (1 s)",
        "note: a block of code is left out",
    ]
    (_, tensors, _, _) = transport.calls[0]
    assert tensors["format"].tolist() == [[b"text"]]
    assert tensors["text_normalization"].tolist() == [[b"plain"]]


def test_both_clients_show_the_text() -> None:
    import asyncio

    assert Client(transport=FakeTransport(ANSWER)).show_text("Ask Nguyen.") == SHOWN
    client = AsyncClient(transport=FakeAsyncTransport(ANSWER))
    assert asyncio.run(client.show_text("Ask Nguyen.")) == SHOWN


def test_a_lexicon_has_words_and_what_is_spoken() -> None:
    transport = FakeTransport(ANSWER)
    assert say(transport, "--show-text", "--lexicon", "Nguyen=win", "--lexicon", "x=a=b").exit_code == 0
    assert json.loads(transport.calls[0][1]["lexicon"].item()) == {"Nguyen": "win", "x": "a=b"}


@pytest.mark.parametrize("entry", ["Nguyen", "Nguyen="])
def test_an_entry_without_words_is_a_usage_error(entry: str) -> None:
    transport = FakeTransport(ANSWER)
    assert say(transport, "--lexicon", entry).exit_code == 2
    assert not transport.calls
