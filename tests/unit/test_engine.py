"""The engine's loop, queues and endings, with fakes in place of the networks."""

from __future__ import annotations

import threading

import pytest

from chatterbox_engine.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from chatterbox_engine.synthesis.prefixes import PREFIX_BYTES
from chatterbox_engine.types import SAMPLES_PER_TOKEN, SamplingParams, SynthesisRequest, SynthesisResult
from tests.unit.engine_fakes import WAIT, Answers, FakeEngine, voice


def test_a_request_is_answered_with_its_tokens_and_their_audio() -> None:
    with FakeEngine() as fake:
        fake.submit("Hello there.")
        result = fake.answers.take()
    assert isinstance(result, SynthesisResult)
    assert result.speech_tokens.tolist() == list(range(12))
    assert len(result.samples) == 12 * SAMPLES_PER_TOKEN
    assert (result.stats["finish_reason"], result.stats["tokens"], result.stats["model"]) == ("stop", 12, "fake")


def test_a_prefix_is_computed_once_for_a_voice_and_exaggeration() -> None:
    asked = [("default", 0.5), ("other", 0.5), ("default", 0.5), ("default", 0.9), ("other", 0.5), ("default", 0.9)]
    with FakeEngine() as fake:
        for name, exaggeration in asked:
            fake.submit(voice=name, sampling=SamplingParams(exaggeration=exaggeration))
            fake.answers.take()
    assert fake.runner.given == asked
    assert fake.runner.computed == [("default", 0.5), ("other", 0.5), ("default", 0.9)]


def test_the_built_in_voice_has_its_prefix_before_the_first_request() -> None:
    fake = FakeEngine()
    fake.voices.built_in = voice("default")
    with fake:
        assert fake.runner.computed == [("default", 0.5)]
        fake.submit()
        fake.answers.take()
        assert fake.runner.computed == [("default", 0.5)]


def test_prefixes_are_bounded_by_their_bytes() -> None:
    with FakeEngine() as fake:
        fake.runner.prefix_bytes = PREFIX_BYTES // 2 + 1
        for name in ("default", "default", "other", "default"):
            fake.submit(voice=name)
            fake.answers.take()
    assert [name for name, _ in fake.runner.computed] == ["default", "other", "default"]


def test_a_request_ends_at_its_length() -> None:
    with FakeEngine() as fake:
        fake.submit("Hello there.", max_seconds=0.2)
        result = fake.answers.take()
    assert isinstance(result, SynthesisResult)
    assert result.stats["finish_reason"] == "length"
    assert result.speech_tokens.tolist() == list(range(5))


def test_a_request_that_stops_at_once_gets_empty_audio() -> None:
    with FakeEngine() as fake:
        fake.text.silent = True
        fake.submit("Hm.")
        result = fake.answers.take()
    assert isinstance(result, SynthesisResult)
    assert (len(result.samples), len(result.speech_tokens), result.stats["rtf"]) == (0, 0, None)


def test_a_request_joins_while_others_run() -> None:
    with FakeEngine() as fake:
        fake.runner.gate.clear()
        for length in (50, 60, 70):
            fake.submit("x" * length)
        fake.runner.gate.set()
        results = fake.answers.take_all(3)
    assert sorted(len(r.speech_tokens) for r in results if isinstance(r, SynthesisResult)) == [51, 61, 71]
    assert max(fake.runner.batches) == 3


def test_long_text_decodes_its_segments_together_and_joins_them_in_order() -> None:
    sentence = "This is a sentence of about fifty characters, is it? "
    with FakeEngine() as fake:
        fake.submit(sentence * 12)
        result = fake.answers.take()
    assert isinstance(result, SynthesisResult)
    assert result.stats["segments"] >= 2
    assert max(fake.runner.batches) == result.stats["segments"]
    starts = [i for i, token in enumerate(result.speech_tokens) if token == 0]
    assert len(starts) == result.stats["segments"]
    assert len(result.samples) > len(result.speech_tokens) * SAMPLES_PER_TOKEN


def test_a_segment_with_nothing_to_speak_is_left_out_and_a_text_of_such_is_refused() -> None:
    line = "Something to be spoken. " * 12
    with FakeEngine() as fake:
        fake.submit(f"{line}\n\n{'- ' * 400}\n\n{line}")
        spoken = fake.answers.take()
        with pytest.raises(InvalidRequest, match="text has nothing to speak: Chatterbox knows none of its letters"):
            fake.submit("- " * 400)
        fake.submit(f"{line}\n\n{line}")
        expected = fake.answers.take()
    assert isinstance(spoken, SynthesisResult)
    assert isinstance(expected, SynthesisResult)
    assert spoken.stats["segments"] == expected.stats["segments"] == 2
    assert spoken.speech_tokens.tolist() == expected.speech_tokens.tolist()


def test_more_requests_than_the_queue_takes_are_refused_at_once_and_the_others_answered() -> None:
    with FakeEngine(max_queue=5) as fake:
        fake.runner.gate.clear()
        for _ in range(5):
            fake.submit()
        with pytest.raises(Overloaded, match="5 requests are under way"):
            fake.submit()
        fake.runner.gate.set()
        assert all(isinstance(answer, SynthesisResult) for answer in fake.answers.take_all(5))
        fake.submit()
        assert isinstance(fake.answers.take(), SynthesisResult)


def test_an_unknown_voice_is_refused_and_takes_no_place() -> None:
    with FakeEngine(max_queue=1) as fake:
        fake.submit(voice="nobody")
        assert isinstance(fake.answers.take(), NotFound)
        fake.submit()
        assert isinstance(fake.answers.take(), SynthesisResult)


def test_a_request_that_waits_for_its_voice_holds_nobody_up() -> None:
    with FakeEngine() as fake:
        fake.submit("slow", voice="later")
        fake.submit("quick")
        quick = fake.answers.take()
        fake.voices.release()
        slow = fake.answers.take()
    assert [len(r.speech_tokens) for r in (quick, slow) if isinstance(r, SynthesisResult)] == [6, 5]


def test_a_voice_that_comes_too_late_starts_nothing() -> None:
    with FakeEngine(request_timeout=0.05) as fake:
        fake.submit(voice="later")
        assert isinstance(fake.answers.take(), DeadlineExceeded)
        fake.voices.release()
    assert not fake.runner.drawn


def test_a_cancelled_request_is_answered_once_and_frees_its_slot() -> None:
    with FakeEngine(max_slots=1) as fake:
        fake.runner.gate.clear()
        first = fake.submit("x" * 200)
        fake.submit("short")
        fake.engine.cancel(first)
        fake.engine.cancel(first)
        fake.runner.gate.set()
        answers = fake.answers.take_all(2)
        fake.engine.cancel(first)
    assert isinstance(answers[0], Cancelled)
    assert isinstance(answers[1], SynthesisResult)
    assert fake.answers.empty
    assert (fake.scheduler.free_slots, fake.scheduler.free_positions) == (1, 1 << 20)


def test_a_request_that_is_too_old_is_ended() -> None:
    with FakeEngine(request_timeout=0.05) as fake:
        fake.s3gen.gate.clear()
        fake.submit()
        assert isinstance(fake.answers.take(), DeadlineExceeded)


@pytest.mark.parametrize("stage", ["runner", "s3gen", "watermarker"])
def test_a_failure_in_any_stage_answers_every_request_and_is_reported(stage: str) -> None:
    with FakeEngine() as fake:
        fake.runner.gate.clear()
        for _ in range(6):
            fake.submit()
        getattr(fake, stage).error = ValueError("broken part")
        fake.runner.gate.set()
        answers = fake.answers.take_all(6)
        assert all(isinstance(answer, EngineFailed) for answer in answers)
        assert "broken part" in str(answers[0])
        assert isinstance(fake.failures.get(timeout=WAIT), ValueError)
        with pytest.raises(Unavailable):
            fake.submit()


def test_a_receiver_that_raises_costs_nobody_else_the_answer() -> None:
    answers = Answers()

    def refuse(_answer: object) -> None:
        raise ConnectionError("gone")

    with FakeEngine() as fake:
        fake.runner.gate.clear()
        for receiver in (refuse, answers.put, answers.put):
            fake.engine.submit(SynthesisRequest(text="Hello.", seed=1), receiver)
        fake.runner.gate.set()
        assert len(answers.take_all(2)) == 2
        assert isinstance(fake.failures.get(timeout=WAIT), ConnectionError)


@pytest.mark.parametrize("seconds", [1000.0, 0.0])
def test_draining_waits_for_what_is_under_way_or_tells_it(seconds: float) -> None:
    drained = threading.Event()
    with FakeEngine() as fake:
        fake.runner.gate.clear()
        fake.submit()
        fake.engine.drain(seconds, drained.set)
        with pytest.raises(Unavailable, match="shutting down"):
            fake.submit()
        assert not drained.is_set()
        fake.runner.gate.set()
        answer = fake.answers.take()
        assert isinstance(answer, Unavailable if seconds == 0.0 else SynthesisResult)
        assert drained.wait(WAIT)


def test_draining_waits_for_the_encoders_that_are_loading() -> None:
    drained = threading.Event()
    with FakeEngine() as fake:
        fake.voices.ahead_done.clear()
        fake.submit()
        fake.engine.drain(1000.0, drained.set)
        assert isinstance(fake.answers.take(), SynthesisResult)
        assert not drained.is_set()
        fake.voices.ahead_done.set()
        assert drained.wait(WAIT)


def test_closing_answers_what_is_under_way_and_ends_the_threads() -> None:
    fake = FakeEngine()
    with fake:
        fake.runner.gate.clear()
        fake.submit()
        closer = threading.Thread(target=fake.engine.close)
        closer.start()
        assert isinstance(fake.answers.take(), Unavailable)
        fake.runner.gate.set()
        closer.join(WAIT)
        assert not closer.is_alive()
        assert not any(thread.is_alive() for thread in fake.engine._threads)


def test_a_failure_while_warming_up_is_raised_by_start() -> None:
    fake = FakeEngine()
    fake.runner.warm_up = _fail  # type: ignore[method-assign]
    with pytest.raises(MemoryError, match="no room"):
        fake.engine.start()


def test_a_failure_of_the_vocoder_while_warming_up_is_raised_by_start_too() -> None:
    fake = FakeEngine()
    fake.s3gen.error = MemoryError("no room")
    with pytest.raises(MemoryError, match="no room"):
        fake.engine.start()


def _fail(report: object) -> None:
    raise MemoryError("no room")


@pytest.mark.usefixtures("threads_kept")
def test_the_vocoder_takes_more_cores_when_nothing_else_is_under_way() -> None:
    with FakeEngine(vocoder_threads=(1, 2)) as fake:
        start, later = fake.runner.gate, threading.Event()
        start.clear()
        fake.submit("x" * 10)
        fake.submit("x" * 100)
        # both are there; now the long one is held half way
        fake.runner.hold_from, fake.runner.gate = 30, later
        start.set()
        fake.answers.take()
        later.set()
        fake.answers.take()
    assert fake.s3gen.threads[-2:] == [1, 2]


@pytest.mark.usefixtures("threads_kept")
def test_the_vocoder_has_all_cores_for_every_chunk_once_all_tokens_are_there() -> None:
    with FakeEngine(vocoder_threads=(1, 2), vocoder_batch=1) as fake:
        fake.s3gen.gate.clear()
        fake.s3gen.entered.clear()  # warming up set it
        for _ in range(3):
            fake.submit("x" * 10)
        fake.vocoder.wait_for(3)
        fake.s3gen.gate.set()
        for _ in range(3):
            fake.answers.take()
    assert fake.s3gen.threads[-2:] == [2, 2]


@pytest.mark.usefixtures("threads_kept")
def test_t3_takes_the_vocoders_cores_while_that_has_nothing_to_do() -> None:
    with FakeEngine(t3_threads=(1, 2)) as fake:
        fake.s3gen.gate.clear()
        fake.s3gen.entered.clear()
        fake.submit("x" * 10)
        assert fake.s3gen.entered.wait(WAIT)
        assert set(fake.runner.threads) == {2}
        before = len(fake.runner.threads)
        fake.runner.started.clear()
        fake.submit("x" * 10)
        assert fake.runner.started.wait(WAIT)
        assert fake.runner.threads[before] == 1
        fake.s3gen.gate.set()
        for _ in range(2):
            fake.answers.take()
