"""Words of a text and when they are spoken: from tokens and where T3 looked, over segments and chunks."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from chatterbox_engine.checkpoint.families import FLASH
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.synthesis.word_times import LOOKAHEAD, Times, path_of
from chatterbox_engine.text.passages import CharSpan
from chatterbox_engine.text.words import words_of
from chatterbox_engine.types import SpokenWord, SynthesisChunk, SynthesisRequest, SynthesisResult
from tests.unit.engine_fakes import Answers, FakeEngine

TEXT = "Hello there, general. What a (bold) one!"


def each_character(source: str) -> list[CharSpan]:
    """Tokens of a start, of each character, and of a stop."""
    return [(0, 0), *((at, at + 1) for at in range(len(source))), (len(source), len(source))]


def test_words_end_at_white_space_and_keep_their_punctuation() -> None:
    words = words_of(TEXT, each_character(TEXT))
    assert [TEXT[slice(*word.span)] for word in words] == TEXT.split()
    assert (words[1].first, words[1].after) == (7, 12)  # without the comma
    assert (words[5].first, words[5].after) == (31, 35)  # without the brackets


def test_a_word_that_many_words_are_said_for_is_one() -> None:
    source = "Room 25 is free"
    said = [(0, 4), (4, 5), *[(5, 7)] * 3, (7, 8), (8, 10), (10, 11), (11, 15), (15, 15)]  # "twenty", " ", "five"
    assert [word.span for word in words_of(source, said)] == [(0, 4), (5, 7), (8, 10), (11, 15)]
    assert words_of("3 kg", [(0, 4)] * 2)[0].span == (0, 4)


def test_each_character_of_a_script_without_spaces_is_a_word() -> None:
    source = "你好\u3002world. ですか"
    assert [source[slice(*word.span)] for word in words_of(source, each_character(source))] == [
        "你",
        "好\u3002",
        "world.",
        *"ですか",
    ]


def test_what_nothing_is_spoken_for_is_no_word() -> None:
    source = "<p>One</p> - <b>two</b>"
    tokens = [(3, 4), (4, 5), (5, 6), (10, 11), (11, 12), (12, 13), (16, 17), (17, 18), (18, 19)]
    assert [word.span for word in words_of(source, tokens)] == [(3, 6), (16, 19)]
    assert words_of("...", [(0, 0), (0, 3), (3, 3)]) == []
    assert words_of("", []) == []


def test_the_path_never_goes_back_and_ignores_a_look_ahead() -> None:
    assert path_of([0, 1, 7, 2, 3, 3, 2, 5], complete=True) == [0, 1, 2, 2, 2, 2, 2, 5]


def test_what_is_known_of_a_path_does_not_change() -> None:
    generator = random.Random(1)
    places = [step / 2 + generator.choice([0, 0, 1, -2, 9]) for step in range(60)]
    whole = path_of(places, complete=True)
    for length in range(60):
        known = path_of(places[:length], complete=False)
        assert len(known) == max(0, length - LOOKAHEAD)
        assert known == whole[: len(known)]


def test_a_place_is_reached_between_two_tokens() -> None:
    times = Times([1.0, 2.0, 4.0], audible=3, complete=True)
    assert [times.reached(place) for place in (1, 2, 3, 4, 5)] == [0.0, 1.0, 1.75, 2.25, 3.0]
    assert Times([1.0], audible=3, complete=False).reached(2) is None
    assert Times([1.0, 2.0, 4.0], audible=2, complete=False).reached(4) == 2.25  # in the next chunk


def whole(engine: FakeEngine, text: str, **changes: object) -> SynthesisResult:
    engine.submit(text, word_times=True, **changes)
    result = engine.answers.take()
    assert isinstance(result, SynthesisResult), result
    return result


def streamed(engine: FakeEngine, text: str, policy: ChunkPolicy) -> list[SynthesisChunk]:
    _, answers = engine.stream(text, policy, word_times=True)
    chunks = answers.take_stream()
    assert all(isinstance(chunk, SynthesisChunk) for chunk in chunks), chunks
    return [chunk for chunk in chunks if isinstance(chunk, SynthesisChunk)]


LONG = " ".join(f"Number {number} of the long list goes here, and on." for number in range(12))


@pytest.mark.parametrize("pace", [1.0, 0.83])
@pytest.mark.parametrize("text", [TEXT, LONG, f"  {LONG}\n\nThe end.", "One [pause 2s] two."])
@pytest.mark.parametrize("policy", [ChunkPolicy(), ChunkPolicy(1, 1), ChunkPolicy(7, 40)])
def test_a_stream_has_the_words_of_the_whole_answer_each_in_the_chunk_that_ends_it(
    text: str, policy: ChunkPolicy, pace: float
) -> None:
    with FakeEngine() as engine:
        engine.runner.place = lambda _attempt, step, _text: 1 + pace * step
        result, chunks = whole(engine, text), streamed(engine, text, policy)
    assert [word for chunk in chunks for word in chunk.words] == list(result.words)
    sent = 0.0
    for chunk in chunks:
        before, sent = sent, sent + len(chunk.samples) / 24_000
        assert all(word.end <= sent + 0.001 for word in chunk.words)
        assert all(word.end > before - 0.001 or chunk.last for word in chunk.words)


def test_words_have_the_times_of_their_tokens_across_segments_and_pauses() -> None:
    text = LONG
    with FakeEngine() as engine:
        result = whole(engine, text)
    assert [word.word for word in result.words] == text.split()
    assert all(text[slice(*word.span)] == word.word for word in result.words)
    assert all(before.end <= after.start for before, after in pairwise(result.words))
    # token i speaks character i: a word's start is its character's place among those of its segments
    first, second = result.words[0], result.words[1]
    assert (first.start, first.end) == (0.0, 0.24)
    assert (second.start, second.end) == (0.28, 0.32)
    assert result.words[-1].end == pytest.approx(len(result.samples) / 24_000 - 0.04, abs=1e-3)


def test_words_that_are_not_spoken_have_no_length() -> None:
    with FakeEngine() as engine:
        engine.runner.place = lambda _attempt, step, _text: min(step + 1, 5)
        result = whole(engine, TEXT)
    duration = len(result.samples) / 24_000
    assert [(word.start, word.end) for word in result.words[1:]] == [(duration, duration)] * 6


def test_requests_that_do_not_ask_get_no_words() -> None:
    with FakeEngine() as engine:
        engine.submit(TEXT)
        engine.submit(TEXT, word_times=True)
        plain, timed = engine.answers.take(), engine.answers.take()
    assert isinstance(plain, SynthesisResult)
    assert isinstance(timed, SynthesisResult)
    assert (len(plain.words), len(timed.words)) == (0, 7)
    assert plain.speech_tokens.tolist() == timed.speech_tokens.tolist()


def test_word_times_are_refused_where_the_heads_are_not_known() -> None:
    with FakeEngine(aligned=False) as engine:
        with pytest.raises(InvalidRequest, match=r"word_times: which attention heads .* `python -m tools.alignment`"):
            engine.engine.submit(SynthesisRequest("Hello.", seed=1, word_times=True), Answers().put)
        engine.submit("Hello.")
        assert isinstance(engine.answers.take(), SynthesisResult)


def test_word_times_are_refused_where_tokens_come_in_blocks() -> None:
    request = SynthesisRequest("Hello.", seed=1, word_times=True)
    with (
        FakeEngine(aligned=False, family=FLASH) as engine,
        pytest.raises(InvalidRequest, match="word_times: not of Chatterbox Flash"),
    ):
        engine.engine.submit(request, Answers().put)


def test_a_word_is_json_as_speech_recognisers_write_it() -> None:
    assert vars(SpokenWord("Hi.", 0.0, 0.2, (0, 3))) == {"word": "Hi.", "start": 0.0, "end": 0.2, "span": (0, 3)}
