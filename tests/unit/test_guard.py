"""The guard, with faults injected into an engine of fakes: what is found, what is cut, what is spoken again."""

from __future__ import annotations

from typing import Any

import pytest

from chatterbox_engine.errors import Cancelled, InvalidRequest
from chatterbox_engine.synthesis.guard import COOLER, LOOP, REPEAT, STALL, TAIL, TAIL_KEPT, Text, Watch
from chatterbox_engine.synthesis.jobs import TokenSegment
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.types import SamplingParams, SynthesisChunk, SynthesisRequest, SynthesisResult
from tests.unit.engine_fakes import STOP, Answers, FakeEngine, reading

TEXT = "The quick brown fox jumps over the lazy dog, and then it goes home."
SIZE = len(TEXT)
"""Speech tokens of clean speech: token i is i, and says character i."""

Runner = Any


def no_stop(runner: Runner) -> None:
    """The stop token is never drawn: the speech goes on after the text, at its last place."""
    runner.token = lambda _attempt, step, _text: step
    runner.place = lambda _attempt, step, text: min(step + 1, text - 1)


def forced_repetition(runner: Runner) -> None:
    """From token 30 on two tokens repeat, and the text does not go on."""
    runner.token = lambda _attempt, step, _text: step if step < 30 else 7 + step % 2
    runner.place = lambda _attempt, step, _text: min(step, 30)


def same_token(runner: Runner) -> None:
    """From token 30 on one token repeats."""
    runner.token = lambda _attempt, step, _text: min(step, 30)
    runner.place = lambda _attempt, step, _text: min(step, 30)


def stuck(runner: Runner) -> None:
    """From token 30 on the text does not go on, though the tokens differ."""
    runner.token = lambda _attempt, step, _text: step
    runner.place = lambda _attempt, step, _text: min(step, 30)


def spoken_twice(runner: Runner) -> None:
    """After token 40 the text is spoken again from its begin."""
    runner.token = lambda _attempt, step, _text: step
    runner.place = lambda _attempt, step, _text: step + 1 if step < 40 else step - 39


def skipped(runner: Runner) -> None:
    """Twenty characters are not spoken."""
    runner.token = lambda _attempt, step, text: step if step < text - 22 else STOP
    runner.place = lambda _attempt, step, _text: step + 1 if step < 20 else step + 21


def ended_early(runner: Runner) -> None:
    """The stop token comes in the middle."""
    runner.token = lambda _attempt, step, _text: step if step < 30 else STOP


FAULTS = [no_stop, forced_repetition, same_token, stuck, spoken_twice, skipped, ended_early]
ENDLESS = [no_stop, forced_repetition, same_token, stuck, spoken_twice]
KINDS = {
    no_stop: "tail",
    forced_repetition: "loop",
    same_token: "loop",
    stuck: "stall",
    spoken_twice: "repeat",
    skipped: "skip",
    ended_early: "skip",
}


def speak(engine: FakeEngine, text: str = TEXT, **changes: Any) -> SynthesisResult:
    engine.submit(text, **changes)
    result = engine.answers.take()
    assert isinstance(result, SynthesisResult), result
    return result


def stream(engine: FakeEngine, policy: ChunkPolicy | None = None, **changes: Any) -> list[SynthesisChunk]:
    _, answers = engine.stream(TEXT, policy, **changes)
    chunks = answers.take_stream()
    return [chunk for chunk in chunks if isinstance(chunk, SynthesisChunk)]


@pytest.mark.parametrize("guard", ["stop", "retry", "upstream"])
def test_clean_speech_has_the_tokens_of_speech_without_a_guard(guard: str) -> None:
    with FakeEngine() as engine:
        plain, guarded = speak(engine), speak(engine, guard=guard)
    assert guarded.speech_tokens.tolist() == plain.speech_tokens.tolist() == list(range(SIZE))
    assert (guarded.stats["retries"], guarded.stats["trimmed_seconds"], guarded.stats["guard_events"]) == (0, 0, [])
    assert guarded.stats["alignment_score"] == (None if guard == "upstream" else 1.0)
    assert "alignment_score" not in plain.stats


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_found(fault: Any) -> None:
    with FakeEngine() as engine:
        fault(engine.runner)
        stats = speak(engine, guard="stop").stats
    assert stats["guard_events"] == [KINDS[fault]]
    assert stats["retries"] == 0


@pytest.mark.parametrize(
    ("fault", "kept"),
    [(no_stop, SIZE - 1 + TAIL_KEPT), (forced_repetition, 42), (same_token, 42), (stuck, 44), (spoken_twice, 40)],
)
def test_speech_that_has_gone_wrong_ends_where_it_did(fault: Any, kept: int) -> None:
    with FakeEngine() as engine:
        fault(engine.runner)
        free = speak(engine, max_seconds=8.0)
        ended = speak(engine, guard="stop", max_seconds=8.0)
    assert len(free.speech_tokens) == 200
    assert ended.speech_tokens.tolist() == free.speech_tokens.tolist()[: len(ended.speech_tokens)]
    assert len(ended.speech_tokens) == pytest.approx(kept, abs=2)
    limit = max(TAIL, STALL, LOOP, REPEAT)
    assert 0 < ended.stats["trimmed_seconds"] <= limit / 25
    assert ended.stats["finish_reason"] == "stop"


@pytest.mark.parametrize("policy", [ChunkPolicy(), ChunkPolicy(1, 1), ChunkPolicy(30, 9)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_guarded_stream_has_the_tokens_of_the_whole_answer(fault: Any, policy: ChunkPolicy) -> None:
    with FakeEngine() as engine:
        fault(engine.runner)
        whole, chunks = speak(engine, guard="stop"), stream(engine, policy, guard="stop")
    assert [token for chunk in chunks for token in chunk.speech_tokens] == whole.speech_tokens.tolist()
    assert sum(len(chunk.samples) for chunk in chunks) == len(whole.samples)
    stats = chunks[-1].stats
    assert stats is not None
    names = ("alignment_score", "retries", "trimmed_seconds", "guard_events")
    assert [stats[name] for name in names] == [whole.stats[name] for name in names]


def only_in(attempts: int, fault: Any, runner: Runner) -> None:
    """The fault in the first attempts alone."""
    clean = runner.token, runner.place
    fault(runner)
    wrong = runner.token, runner.place
    runner.token, runner.place = (
        lambda attempt, step, text, pair=pair: pair[attempt > attempts](attempt, step, text)
        for pair in zip(wrong, clean, strict=True)
    )


@pytest.mark.parametrize("fault", [skipped, ended_early, spoken_twice, forced_repetition, stuck])
def test_what_went_wrong_is_spoken_again(fault: Any) -> None:
    with FakeEngine() as engine:
        only_in(2, fault, engine.runner)
        result = speak(engine, guard="retry")
    assert result.speech_tokens.tolist() == list(range(SIZE))
    assert (result.stats["retries"], result.stats["guard_events"], result.stats["trimmed_seconds"]) == (2, [], 0)


def test_a_tail_is_cut_and_not_spoken_again() -> None:
    with FakeEngine() as engine:
        no_stop(engine.runner)
        assert speak(engine, guard="retry").stats["retries"] == 0


def test_speech_of_which_t3_is_unsure_is_spoken_again_and_the_surest_is_taken() -> None:
    with FakeEngine() as engine:
        engine.runner.peak = lambda attempt: [0.5, 0.8, 0.7][attempt - 1]
        engine.runner.token = lambda attempt, step, text: step + 1000 * attempt if step < text - 2 else STOP
        unsure = speak(engine, guard="retry")
    with FakeEngine() as engine:
        engine.runner.peak = lambda attempt: [0.5, 0.88][attempt - 1]
        sure = speak(engine, guard="retry")
    assert unsure.speech_tokens[0] == 2000
    assert (unsure.stats["retries"], unsure.stats["guard_events"]) == (2, ["score"])
    assert unsure.stats["alignment_score"] == pytest.approx(0.8 / 0.9, abs=0.001)
    assert (sure.stats["retries"], sure.stats["guard_events"]) == (1, [])


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_best_attempt_is_taken_when_none_is_sound(retries: int) -> None:
    with FakeEngine() as engine:
        engine.runner.token = lambda attempt, step, _text: step if step < 20 + 10 * (attempt == 2) else STOP
        result = speak(engine, guard="retry", guard_retries=retries)
    assert result.stats["retries"] == retries
    assert len(result.speech_tokens) == (20 if retries == 0 else 30)


def test_a_stream_is_spoken_again_until_its_first_chunk_is_out() -> None:
    with FakeEngine() as engine:
        only_in(1, skipped, engine.runner)
        late = stream(engine, ChunkPolicy(SIZE, SIZE), guard="retry")
    with FakeEngine() as engine:
        only_in(1, skipped, engine.runner)
        early = stream(engine, ChunkPolicy(5, 5), guard="retry")
    assert late[-1].stats is not None
    assert early[-1].stats is not None
    assert [(chunks[-1].stats or {})["retries"] for chunks in (late, early)] == [1, 0]
    assert sum(len(chunk.speech_tokens) for chunk in late) == SIZE
    assert early[-1].stats["guard_events"] == ["skip"]


def test_another_attempt_has_the_next_derived_seed_and_the_first_that_of_no_guard() -> None:
    seen: dict[str, list[list[float]]] = {}
    for guard in ("off", "retry", "retry again"):
        with FakeEngine() as engine:
            ended_early(engine.runner)
            drawn = seen[guard] = []
            begin = engine.runner.prefill
            engine.runner.prefill = lambda prompts, prefixes, begin=begin, drawn=drawn: (  # type: ignore[method-assign]
                drawn.extend(prompt.uniforms.tolist() for prompt in prompts) or begin(prompts, prefixes)
            )
            speak(engine, guard=guard.split()[0])
    assert len(seen["off"]) == 1
    assert len(seen["retry"]) == 3
    assert seen["retry"][0] == seen["off"][0]
    assert seen["retry"] == seen["retry again"]
    assert len(set(map(tuple, seen["retry"]))) == 3


@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_another_attempt_is_drawn_at_a_lower_temperature_and_the_best_tokens_only_once(temperature: float) -> None:
    drawn: list[float] = []
    with FakeEngine() as engine:
        ended_early(engine.runner)
        begin = engine.runner.prefill
        engine.runner.prefill = lambda prompts, prefixes: (  # type: ignore[method-assign]
            drawn.extend(prompt.sampling.temperature for prompt in prompts) or begin(prompts, prefixes)
        )
        stats = speak(engine, guard="retry", sampling=SamplingParams(temperature=temperature)).stats
    assert drawn == pytest.approx([temperature * COOLER**attempt for attempt in range(3 if temperature else 1)])
    assert (stats["retries"], stats["guard_events"]) == (len(drawn) - 1, ["skip"])


def test_short_text_does_not_speak_longer_than_its_characters_can() -> None:
    with FakeEngine() as engine:
        engine.runner.token = lambda _attempt, step, _text: step
        engine.runner.place = lambda _attempt, step, _text: 1 + step / 60
        result = speak(engine, "Hi.", guard="stop")
    assert result.stats["guard_events"][0] in ("long", "stall")
    assert result.stats["audio_seconds"] <= 2 * (0.6 + 3 / 13)


def test_a_long_pause_and_a_short_look_back_are_no_faults() -> None:
    with FakeEngine() as engine:
        pause = range(30, 54)  # nearly a second at one place, of one token
        engine.runner.token = lambda _attempt, step, text: (
            STOP if step == text + 22 else 30 if step in pause else step - 24 * (step > 53)
        )
        engine.runner.place = lambda _attempt, step, _text: (
            30 if step in pause else 3 if step in (10, 11) else step + 1 - 24 * (step > 53)
        )
        result = speak(engine, guard="stop")
    assert result.stats["guard_events"] == []
    assert len(result.speech_tokens) == SIZE + 24


def test_what_is_settled_never_falls_and_is_never_cut() -> None:
    segment = TokenSegment(tuple(range(SIZE + 2)), 1, 500, 0.0, spans=[(0, 0), *((at, at + 1) for at in range(SIZE))])
    for fault in ENDLESS:
        engine = FakeEngine()
        fault(engine.runner)
        watch, before = Watch(Text.of(segment, TEXT)), 0
        for step in range(400):
            token, place = engine.runner.token(1, step, SIZE + 2), engine.runner.place(1, step, SIZE + 2)
            kept = watch.take(token, reading(place, SIZE + 2))
            assert before <= watch.settled <= step + 1
            before = watch.settled
            if kept is not None:
                assert kept >= watch.settled
                break
        else:
            raise AssertionError(fault)


def test_a_request_that_waits_to_be_spoken_again_can_be_cancelled() -> None:
    with FakeEngine() as engine:
        ended_early(engine.runner)
        engine.runner.gate.clear()
        engine.runner.hold_from = 31
        number = engine.submit(TEXT, guard="retry", guard_retries=5)
        while len(engine.runner.batches) < 31:
            engine.runner.started.wait(0.01)
        engine.engine.cancel(number)
        engine.runner.gate.set()
        assert isinstance(engine.answers.take(), Cancelled)
        assert len(speak(engine, "Hello.").speech_tokens) == 30
        status = engine.engine.status()
    assert (status.slots_active, status.utterances_waiting) == (0, 0)


def test_upstreams_analyser_drops_a_token_that_follows_two_equal_ones() -> None:
    with FakeEngine() as engine:
        engine.runner.token = lambda _attempt, step, text: STOP if step == text - 2 else 5 if step in (10, 11) else step
        assert len(speak(engine).speech_tokens) == SIZE
        assert speak(engine, guard="upstream").speech_tokens.tolist() == [*range(10), 5, 5]


def test_a_guard_is_refused_where_the_heads_are_not_known() -> None:
    with FakeEngine(aligned=False) as engine, pytest.raises(InvalidRequest, match="guard: which attention heads"):
        engine.engine.submit(SynthesisRequest("Hello.", seed=1, guard="stop"), Answers().put)
