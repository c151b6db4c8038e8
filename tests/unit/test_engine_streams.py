"""Streams through the engine: order, endings, cancellation, the audio of the whole answer. Fakes for networks."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from chatterbox_engine.errors import Cancelled, DeadlineExceeded, EngineFailed, Overloaded, RequestError
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.types import SAMPLES_PER_TOKEN, SynthesisChunk, SynthesisResult
from tests.unit.engine_fakes import WAIT, Answers, FakeEngine

SENTENCE = "This is a sentence of about fifty characters, is it? "


def chunks_of(answers: Answers) -> list[SynthesisChunk]:
    taken = answers.take_stream()
    assert all(isinstance(chunk, SynthesisChunk) for chunk in taken), taken
    return [chunk for chunk in taken if isinstance(chunk, SynthesisChunk)]


@pytest.mark.parametrize("text", ["A.", "x" * 12, "x" * 13, "x" * 250, SENTENCE * 12], ids=lambda text: str(len(text)))
def test_a_stream_is_the_whole_answer_in_chunks(text: str) -> None:
    with FakeEngine() as fake:
        fake.submit(text)
        whole = fake.answers.take()
        chunks = chunks_of(fake.stream(text)[1])
    assert isinstance(whole, SynthesisResult)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert np.concatenate([chunk.speech_tokens for chunk in chunks]).tolist() == whole.speech_tokens.tolist()
    np.testing.assert_allclose(np.concatenate([chunk.samples for chunk in chunks]), whole.samples, atol=1e-7)
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    stats = chunks[-1].stats
    assert stats is not None
    assert set(whole.stats) | {"chunks"} == set(stats)
    assert (stats["tokens"], stats["chunks"]) == (whole.stats["tokens"], len(chunks))
    assert stats["audio_seconds"] == whole.stats["audio_seconds"]


def test_the_first_chunk_comes_before_the_utterance_is_decoded() -> None:
    with FakeEngine() as fake:
        fake.runner.hold_from = 20
        fake.runner.gate.clear()
        _, listener = fake.stream("x" * 200)
        first = listener.take()
        assert listener.empty
        fake.runner.gate.set()
        listener.take_stream()
    assert isinstance(first, SynthesisChunk)
    assert len(first.speech_tokens) == ChunkPolicy().first


def test_a_stream_that_stops_at_once_gets_one_empty_last_chunk() -> None:
    with FakeEngine() as fake:
        fake.text.silent = True
        chunks = chunks_of(fake.stream("Hm.")[1])
    assert [(len(chunk.samples), len(chunk.speech_tokens), chunk.last) for chunk in chunks] == [(0, 0, True)]


def test_streams_and_whole_answers_share_the_engine_and_each_has_its_own_audio() -> None:
    texts = ["x" * length for length in (3, 40, 41, 90, 150, 222)]
    with FakeEngine(max_slots=3) as fake:
        fake.runner.gate.clear()
        listeners = [fake.stream(text)[1] for text in texts]
        for text in texts:
            fake.submit(text)
        fake.runner.gate.set()
        streamed = [np.concatenate([chunk.samples for chunk in chunks_of(it)]) for it in listeners]
        whole = {len(r.samples): r.samples for r in fake.answers.take_all(6) if isinstance(r, SynthesisResult)}
    assert len(whole) == 6
    for samples in streamed:
        np.testing.assert_allclose(samples, whole[len(samples)], atol=1e-7)


def test_a_cancelled_stream_ends_once_frees_its_slot_and_vocodes_no_more() -> None:
    with FakeEngine(max_slots=1) as fake:
        fake.s3gen.gate.clear()
        number, listener = fake.stream("x" * 250)
        _, other = fake.stream("y" * 30)
        fake.engine.cancel(number)
        fake.engine.cancel(number)
        assert isinstance(listener.take(), Cancelled)
        fake.s3gen.gate.set()
        assert len(chunks_of(other)) > 1
        fake.engine.cancel(number)
    assert listener.empty
    assert (fake.scheduler.free_slots, fake.scheduler.free_positions) == (1, 1 << 20)
    assert sum(fake.s3gen.batches) <= 1 + 1 + 2  # warm-up, at most the chunk that was in the vocoder, the other's two


def test_no_chunk_follows_a_cancellation() -> None:
    with FakeEngine() as fake:
        for tokens in range(2, 60, 3):
            number, listener = fake.stream("x" * tokens)
            fake.engine.cancel(number)
            taken = listener.take_stream()
            assert all(isinstance(item, SynthesisChunk) for item in taken[:-1])
            chunks_of(fake.stream("A.")[1])  # everything in flight has arrived
            assert listener.empty


def test_a_chunk_that_memory_does_not_hold_alone_is_refused_and_the_others_are_spoken() -> None:
    with FakeEngine() as fake:
        fake.s3gen.room = 40
        large, small = (
            fake.stream("x" * tokens, policy=ChunkPolicy(first=60))[1] for tokens in (49, 29)
        )  # and a full stop
        refused = large.take_stream()[-1]
        assert isinstance(refused, Overloaded)
        assert "2.0 s" in str(refused)
        assert sum(len(chunk.samples) for chunk in chunks_of(small)) == (29 + len(".")) * SAMPLES_PER_TOKEN


def test_a_stream_that_is_too_old_is_ended() -> None:
    with FakeEngine(request_timeout=0.05) as fake:
        fake.s3gen.gate.clear()
        assert isinstance(fake.stream("Hello.")[1].take(), DeadlineExceeded)


@pytest.mark.parametrize("stage", ["runner", "s3gen", "watermarker"])
def test_a_failure_in_any_stage_ends_every_stream(stage: str) -> None:
    with FakeEngine() as fake:
        fake.runner.gate.clear()
        listeners = [fake.stream("x" * 50)[1] for _ in range(5)]
        getattr(fake, stage).error = ValueError("broken part")
        fake.runner.gate.set()
        assert all(isinstance(listener.take_stream()[-1], EngineFailed) for listener in listeners)
        assert isinstance(fake.failures.get(timeout=WAIT), ValueError)


def test_closing_ends_streams() -> None:
    fake = FakeEngine()
    with fake:
        fake.runner.gate.clear()
        _, listener = fake.stream("x" * 50)
        closer = threading.Thread(target=fake.engine.close)
        closer.start()
        assert isinstance(listener.take(), RequestError)
        fake.runner.gate.set()
        closer.join(WAIT)
        assert not closer.is_alive()


def test_chunks_of_a_stream_do_not_wait_until_the_one_before_is_finished_and_come_in_order() -> None:
    with FakeEngine() as fake:
        fake.watermarker.held = lambda wave: 0 < len(wave) == 13 * SAMPLES_PER_TOKEN  # a stream's first chunk
        _, held = fake.stream("x" * 149)
        assert fake.watermarker.entered.wait(WAIT)
        fake.watermarker.held = lambda _wave: False
        queued = fake.vocoder.wait_for(4)
        assert [chunk.number for chunk in queued] == [0, 1, 2, 3]
        assert queued[-1].last
        _, other = fake.stream("y" * 149)  # the other finisher's
        assert [chunk.index for chunk in chunks_of(other)] == [0, 1, 2, 3]
        assert held.empty
        fake.watermarker.gate.set()
        chunks = chunks_of(held)
    assert [chunk.index for chunk in chunks] == [0, 1, 2, 3]
    assert np.concatenate([chunk.speech_tokens for chunk in chunks]).tolist() == list(range(150))


def test_chunks_of_a_stream_that_are_queued_together_are_vocoded_in_different_batches() -> None:
    with FakeEngine() as fake:
        whole = fake.submit("x" * 149)
        reference = fake.answers.take()
        assert isinstance(reference, SynthesisResult), whole
        fake.s3gen.gate.clear()
        fake.s3gen.batches.clear()
        _, answers = fake.stream("x" * 149)
        fake.vocoder.wait_for(1 + 4)  # the whole answer's, then the stream's, all of which are queued now
        fake.s3gen.gate.set()
        chunks = chunks_of(answers)
    assert fake.s3gen.batches == [1, 1, 1, 1]
    np.testing.assert_allclose(np.concatenate([chunk.samples for chunk in chunks]), reference.samples, atol=1e-7)


def test_of_a_stream_that_is_cancelled_while_its_chunk_is_in_the_vocoder_nothing_is_finished() -> None:
    with FakeEngine() as fake:
        fake.s3gen.gate.clear()
        fake.s3gen.entered.clear()  # set by the warm-up
        number, answers = fake.stream("x" * 149)
        fake.vocoder.wait_for(4)
        assert fake.s3gen.entered.wait(WAIT)
        fake.engine.cancel(number)
        assert isinstance(answers.take(), Cancelled)
        fake.s3gen.gate.set()
        fake.submit("Hello.")
        assert isinstance(fake.answers.take(), SynthesisResult)
    assert answers.empty
    assert fake.watermarker.applied == 1  # the other request's
    assert fake.s3gen.batches == [1, 1, 1]  # warm-up, the chunk that was there, the other request
