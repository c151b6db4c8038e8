"""SSML's rates of speech: which audio is to be played how fast, and the gateway that does so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chatterbox_engine.checkpoint.dims import LlamaDims
from chatterbox_engine.checkpoint.families import ENGLISH
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.metrics import Served
from chatterbox_engine.serving.contract import chunk_outputs
from chatterbox_engine.synthesis.answers import StreamAnswer, WholeAnswer
from chatterbox_engine.synthesis.segments import Segmenter
from chatterbox_engine.synthesis.streaming import Span
from chatterbox_engine.types import SAMPLES_PER_TOKEN, SynthesisRequest
from chatterbox_gateway.output import Encoder, Output, encode_file
from tests.unit.client_fakes import FakeAsyncTransport
from tests.unit.engine_fakes import FakeText, chunk, job
from tests.unit.gateway_fakes import SPEECH, call, gateway_of

SERVED = Served({}, lambda: 0)
SLOW = '<speak>one <prosody rate="50%">two<break time="1s"/>three</prosody> four</speak>'
RATE = 24_000
SAMPLES = (np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) * 16_000).astype("<i2").tobytes()


def segments_of(text: str, markup: str = "auto_rate") -> list[tuple[float, float]]:
    """Rate and pause of each."""
    found = Segmenter(FakeText(), LlamaDims(), 300, ENGLISH).segments(SynthesisRequest(text, seed=1, markup=markup))
    return [(segment.rate, segment.pause) for segment in found.segments]


@pytest.mark.parametrize(
    ("given", "rate"),
    [("slow", 0.75), ("x-fast", 1.5), ("150%", 1.5), ("+20%", 1.2), ("-50%", 0.5), ("1.25", 1.25), ("default", 1.0)],
)
def test_a_rate_is_a_name_or_a_number(given: str, rate: float) -> None:
    assert segments_of(f'<speak><prosody rate="{given}">a</prosody></speak>') == [(pytest.approx(rate), 0.0)]


@pytest.mark.parametrize("given", ["10%", "500%", "soon", "", "-80%", "0"])
def test_a_rate_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest, match=f"SSML, line 1, column 8: the rate is '{given}'; it must be one of"):
        segments_of(f'<speak><prosody rate="{given}">a</prosody></speak>')


def test_other_rates_are_refused_where_nobody_plays_them() -> None:
    with pytest.raises(InvalidRequest, match="other rates than medium need the gateway, or markup auto_rate"):
        segments_of(SLOW, "auto")


def test_the_innermost_rate_counts_and_silences_keep_their_length_when_they_are_played() -> None:
    assert segments_of(SLOW) == [(1.0, 0.0), (0.5, 0.5), (0.5, 0.0), (1.0, 0.0)]
    nested = '<speak><prosody rate="slow">a <prosody rate="fast">b</prosody> c</prosody></speak>'
    assert [rate for rate, _ in segments_of(nested)] == [0.75, 1.25, 0.75]


def test_answers_say_which_audio_is_to_be_played_how_fast() -> None:
    request = job(segments=2)
    slow = replace(request.segments[0], rate=0.5, pause=0.1)
    request = replace(request, segments=[slow, request.segments[1]])
    wave = np.ones(2 * SAMPLES_PER_TOKEN, np.float32)
    whole = WholeAnswer(SERVED)
    assert whole.add(chunk(request, segment=0, span=Span.whole(2)), wave, (0.0, 1.0)) is None
    answer = whole.add(chunk(request, segment=1, span=Span.whole(2)), wave, (0.0, 1.0))
    assert answer is not None
    assert answer.stats["rates"] == [(2 * SAMPLES_PER_TOKEN + 2400, 0.5), (2 * SAMPLES_PER_TOKEN, 1.0)]
    assert sum(length for length, _ in answer.stats["rates"]) == len(answer.samples)


def test_chunks_say_how_fast_they_are_to_be_played() -> None:
    request = job(stream=True)
    request = replace(request, segments=[replace(request.segments[0], rate=0.5)])
    part = StreamAnswer(request, SERVED).add(
        chunk(request, span=Span.whole(2)), np.ones(2 * SAMPLES_PER_TOKEN, np.float32), (0.0, 1.0)
    )
    assert b'"rate": 0.5' in chunk_outputs(part, "pcm")["stats"].item()
    assert b'"rate"' not in chunk_outputs(replace(part, rate=1.0), "pcm")["stats"].item()


def test_the_gateway_plays_each_part_at_its_rate() -> None:
    output = Output("pcm")
    rates = [(12_000, 0.5), (6_000, 1.0), (6_000, 2.0)]
    whole = encode_file(output, RATE, SAMPLES, rates)
    assert len(whole) == 2 * (24_000 + 6_000 + 3_000)
    encoder = Encoder(output, RATE)
    pieces = [encoder.encode(SAMPLES[at : at + 4000], 0.5) for at in range(0, 24_000, 4000)]
    pieces += [encoder.encode(SAMPLES[24_000:36_000]), encoder.encode(SAMPLES[36_000:], 2.0), encoder.finish()]
    assert b"".join(pieces) == whole
    assert len(encode_file(Output("pcm", speed=2.0), RATE, SAMPLES, rates)) == len(whole) // 2
    assert encode_file(Output("pcm", speed=2.0), RATE, SAMPLES, [(24_000, 0.5)]) == SAMPLES


@pytest.mark.parametrize(
    ("sent", "asked"), [({}, b"auto_rate"), ({"markup": "auto"}, b"auto_rate"), ({"markup": "none"}, b"none")]
)
def test_the_gateway_asks_for_rates_wherever_it_asks_for_markup(sent: dict[str, str], asked: bytes) -> None:
    for body in (SPEECH, {**SPEECH, "stream": False}):
        transport = FakeAsyncTransport()
        call(gateway_of(transport), "POST", "/v1/audio/speech", json={**body, "voice": None, **sent})
        assert transport.sync.calls[0][1]["markup"].item() == asked
