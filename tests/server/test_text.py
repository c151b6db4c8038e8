"""Texts as people send them, through the real server and client: words, silence, notes and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from chatterbox_client import Client, InvalidRequest
from chatterbox_engine.launcher.server import TritonServer
from tests.server.front import Front

RATE = 24_000


def silences(samples: np.ndarray) -> list[int]:
    """Lengths of the runs of digital silence of 50 ms or more, in samples."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (samples == 0).astype(int), [0]])))
    return [int(length) for length in edges[1::2] - edges[::2] if length >= RATE // 20]


@pytest.fixture
def client(server: TritonServer) -> Client:
    return Client(server.http_url, "http", timeout=120)


def test_without_stages_the_same_tokens_are_spoken(client: Client) -> None:
    text = "Say **this** at 10:30 [pause 1s]."
    plain = client.speak(text, seed=3, max_seconds=1)
    named = client.speak(text, seed=3, max_seconds=1, text_normalization="none", markup="none")
    assert named.speech_tokens.tolist() == plain.speech_tokens.tolist()
    assert "notes" not in plain.stats


def test_markdown_is_spoken_as_its_words(client: Client) -> None:
    shown = client.speak("Hello there.", seed=3, max_seconds=1)
    marked = client.speak("**Hello** [there](http://example.org)", seed=3, max_seconds=1, text_normalization="plain")
    assert marked.speech_tokens.tolist() == shown.speech_tokens.tolist()


def test_a_time_is_spoken_in_words(client: Client) -> None:
    words = client.speak("We meet at ten thirty.", seed=3, max_seconds=1)
    digits = client.speak("We meet at 10:30.", seed=3, max_seconds=1, text_normalization="spoken")
    assert digits.speech_tokens.tolist() == words.speech_tokens.tolist()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("One. [pause 1s] Two.", 1.0),
        ('<speak>One<break time="700ms"/>two.</speak>', 0.7),
        ("[pause 500ms] Hello.", 0.5),
    ],
)
def test_a_pause_is_digital_silence_whole_and_in_streams(server: TritonServer, text: str, seconds: float) -> None:
    with Client(server.grpc_url, "grpc", timeout=120) as client:
        whole = client.speak(text, seed=3, max_seconds=1, markup="auto").samples
        chunks = list(client.stream(text, seed=3, max_seconds=1, markup="auto"))
    streamed = np.concatenate([chunk.samples for chunk in chunks])
    for samples in (whole, streamed):
        (found,) = silences(samples)
        assert abs(found - seconds * RATE) <= 2  # the first and last samples of a fade are zero as well
    assert len(whole) == len(streamed)


def test_lines_are_pauses(client: Client) -> None:
    audio = client.speak("Milk\r\nEggs\r\nBread", seed=3, max_seconds=1, text_normalization="plain")
    assert len(silences(audio.samples)) == 2
    assert audio.stats["segments"] == 3


def test_a_sound_that_the_model_lacks_is_noted(client: Client) -> None:
    audio = client.speak("[laugh] That was close.", seed=3, max_seconds=1, markup="auto")
    assert audio.stats["notes"] == ["[laugh] is left out: Chatterbox has no such sound"]


@pytest.mark.full
def test_turbo_speaks_its_sounds(server_of: Callable[[str], TritonServer]) -> None:
    server = server_of("tiny-turbo")
    with Client(server.http_url, "http", model="tiny-turbo", timeout=120) as client:
        audio = client.speak("[Laugh] That was close.", seed=3, max_seconds=1, markup="auto")
        named = client.speak("[laugh] That was close.", seed=3, max_seconds=1)
    assert "notes" not in audio.stats
    assert audio.speech_tokens.tolist() == named.speech_tokens.tolist()


def test_the_text_is_shown_stage_by_stage(client: Client) -> None:
    shown = client.show_text(
        "\ufeffAsk **Nguyen** at 10:30. [pause 1s]",
        text_normalization="spoken",
        markup="auto",
        lexicon={"Nguyen": "win"},
    )
    assert [stage["stage"] for stage in shown["stages"]] == ["clean", "markup", "plain", "lexicon", "spoken"]
    (segment,) = shown["segments"]
    assert segment == {
        "text": "Ask win at ten thirty.",
        "start": 1,
        "end": 25,
        "language": "en",
        "pause": 1.0,
        "rate": 1.0,
    }


def test_a_changed_lexicon_file_is_used_without_a_restart(front: Front, client: Client, lexicon_file: Path) -> None:
    words = client.speak("Ask win.", seed=3, max_seconds=1)
    lexicon_file.write_text("words: {Nguyen: win}\nvoices: {default: {Zyzzyva: zizz iva}}\n")
    listed = httpx.get(f"http://{front.address}/v1/lexicons").json()
    assert listed == {"words": {"Nguyen": "win"}, "voices": {"default": {"Zyzzyva": "zizz iva"}}, "error": None}
    assert client.voices.lexicons().words == {"Nguyen": "win"}
    name = client.speak("Ask Nguyen.", seed=3, max_seconds=1)
    assert name.speech_tokens.tolist() == words.speech_tokens.tolist()
    assert client.show_text("Nguyen, Zyzzyva")["segments"][0]["text"] == "win, zizz iva"
    lexicon_file.write_text("words: [")
    assert "cannot be read" in (client.voices.lexicons().error or "")
    assert client.show_text("Nguyen")["segments"][0]["text"] == "win"
    lexicon_file.write_text("{}")
    assert client.show_text("Nguyen")["segments"][0]["text"] == "Nguyen"


def test_the_gateway_shows_the_text_stage_by_stage_and_refuses_what_is_wrong(front: Front) -> None:
    url = f"http://{front.address}/v1/text"
    shown = httpx.post(url, json={"text": "**Now** at 10:30.", "text_normalization": "spoken"}).json()
    assert [stage["stage"] for stage in shown["stages"]] == ["clean", "markup", "plain", "spoken"]
    assert [part["text"] for part in shown["segments"]] == ["Now at ten thirty."]
    refused = httpx.post(url, json={"text": "Hello.", "nope": 1})
    assert refused.status_code == 400
    assert "nope" in refused.json()["error"]["message"]


BAD = [
    ({"markup": "auto"}, "<speak>a<emphasis>b</emphasis></speak>", "SSML, line 1, column 9: the element"),
    ({"markup": "auto"}, "<speak>\na", "SSML, line 2, column 2: malformed"),
    ({"markup": "auto"}, "Hello\n[pause 1x]", "[pause] at line 2, column 1: '1x' is no duration"),
    ({"text_normalization": "plain"}, "```\ncode\n```", "text has nothing to speak"),
    ({"text_normalization": "loud"}, "Hello.", "text_normalization is 'loud'; it must be one of none, plain, spoken"),
    ({"markup": "xml"}, "Hello.", "markup is 'xml'; it must be one of none, auto"),
    ({"lexicon": {"": "a"}}, "Hello.", "lexicon: '' is no word"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "text", "reason"), BAD)
def test_bad_markup_is_refused_with_its_place(
    server: TritonServer, front: Front, options: dict[str, Any], text: str, reason: str
) -> None:
    for url, protocol in ((server.http_url, "http"), (server.grpc_url, "grpc")):
        with Client(url, protocol, timeout=120) as client, pytest.raises(InvalidRequest) as caught:
            client.speak(text, **options)
        assert reason in str(caught.value)
    with Client(server.grpc_url, "grpc", timeout=120) as client, pytest.raises(InvalidRequest) as caught:
        list(client.stream(text, **options))
    assert reason in str(caught.value)
    body = {"input": text, "response_format": "pcm", **options}
    for route, sent in (("audio/speech", body), ("text", {"text": text, **options})):
        refused = httpx.post(f"http://{front.address}/v1/{route}", json=sent)
        assert refused.status_code == 400
        assert reason in refused.json()["error"]["message"]


def test_the_gateway_speaks_slowly_where_ssml_says_so(front: Front) -> None:
    def length(text: str, **options: Any) -> int:
        body = {"input": text, "seed": 3, "max_seconds": 1, "response_format": "pcm", **options}
        answer = httpx.post(f"http://{front.address}/v1/audio/speech", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return len(answer.content) // 2

    plain = length("<speak>One two three.</speak>")
    for stream in (True, False):
        slow = '<speak><prosody rate="50%">One two three.</prosody></speak>'
        assert length(slow, stream=stream) == 2 * plain
        half = '<speak><prosody rate="50%">One two three.</prosody><break time="1s"/>One two three.</speak>'
        assert length(half, stream=stream) == pytest.approx(2 * plain + RATE + length("One two three."), abs=RATE // 2)
