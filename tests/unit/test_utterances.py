"""Which chunks of a request are due, in which order, and what they tell of its progress."""

from __future__ import annotations

from chatterbox_engine.checkpoint.families import ENGLISH
from chatterbox_engine.synthesis.jobs import Chunk
from chatterbox_engine.synthesis.utterances import Speech, Utterance
from chatterbox_engine.voices.library import Found
from tests.unit.engine_fakes import STOP, job, voice


def speech(*, stream: bool) -> Speech:
    """A request of two segments."""
    it = Speech(job(stream=stream, segments=2), Found(voice("default"), "memory"), 0.0, ENGLISH)
    it.start()
    return it


def draw(utterance: Utterance, *tokens: int) -> list[Chunk]:
    """The chunks that are due after some more tokens."""
    due: list[Chunk] = []
    for token in tokens:
        if utterance.take(token, STOP):
            utterance.speech.end()
        due += utterance.speech.due(utterance)
    return due


def test_a_whole_answer_has_a_chunk_for_each_utterance_as_it_ends() -> None:
    first, second = speech(stream=False).utterances
    (early,) = draw(second, 7, STOP)
    (late,) = draw(first, *range(40), STOP)
    assert [(chunk.segment, chunk.tokens) for chunk in (early, late)] == [(1, (7,)), (0, tuple(range(40)))]
    assert all(chunk.span.complete and chunk.finish == "stop" for chunk in (early, late))
    assert early.times.decoded is None
    assert late.times.decoded is not None


def test_a_stream_has_its_chunks_in_the_order_of_the_text() -> None:
    first, second = speech(stream=True).utterances
    assert draw(second, *range(50), STOP) == []
    (begin,) = draw(first, *range(30))
    assert begin.first
    assert begin.kept == tuple(range(10))
    rest = draw(first, STOP)
    assert [(chunk.segment, chunk.number, chunk.kept) for chunk in rest] == [
        (0, 1, tuple(range(10, 30))),
        (1, 2, tuple(range(50))),
    ]
    assert [chunk.last for chunk in (begin, *rest)] == [False, False, True]
    assert [chunk.times.decoded is not None for chunk in (begin, *rest)] == [False, True, True]


def test_what_a_chunk_holds_does_not_change_with_later_tokens() -> None:
    first, _ = speech(stream=True).utterances
    (chunk,) = draw(first, *range(13))
    before = chunk.tokens
    draw(first, *range(13, 25))
    assert chunk.tokens == before == tuple(range(13))
