"""Batch work beside live requests: admission, preemption, the vocoder's queue, the engine with fakes and networks."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_engine import assemble
from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError, InvalidRequest, Overloaded, RequestError
from chatterbox_engine.metrics import NoMetrics
from chatterbox_engine.serving import contract
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.synthesis.scheduler import Place, Scheduler
from chatterbox_engine.t3.extents import GRAIN
from chatterbox_engine.types import SynthesisRequest, SynthesisResult
from tests.unit.engine_fakes import WAIT, Answers, FakeEngine, FakeS3Gen, chunk, job
from tests.unit.test_vocoder import vocode


@dataclass(eq=False)
class Fake:
    batch: bool = False
    row_positions: list[int] = field(default_factory=lambda: [GRAIN, GRAIN])
    first: bool = True
    begun: bool = False
    place: Place | None = None

    @property
    def preemptible(self) -> bool:
        return self.batch and not self.begun


def scheduler(*, max_slots: int = 2, positions: int = 64 * GRAIN, live_slots: int = 0) -> Scheduler[Fake]:
    return Scheduler(max_slots=max_slots, positions=positions, max_prefills=4, live_slots=live_slots)


def filled(it: Scheduler[Fake], count: int, **fields: Any) -> list[Fake]:
    """Batch utterances that run."""
    fakes = [Fake(batch=True, **fields) for _ in range(count)]
    for fake in fakes:
        it.add(fake)
    assert it.schedule().prefill == fakes
    return fakes


def test_live_utterances_are_admitted_before_batch_ones_that_came_earlier() -> None:
    it = scheduler(max_slots=2)
    batch, live = [Fake(batch=True) for _ in range(3)], Fake()
    for fake in (*batch, live):
        it.add(fake)
    assert it.schedule().prefill == [live, batch[0]]
    assert (it.waiting, it.batch_waiting, it.batch_running) == (2, 2, 1)


def test_a_live_utterance_preempts_the_batch_one_that_was_admitted_last() -> None:
    it = scheduler(max_slots=2)
    older, newer = filled(it, 2)
    waiting, live = Fake(batch=True), Fake()
    it.add(waiting)
    it.add(live)
    plan = it.schedule()
    assert (plan.prefill, plan.decode, plan.preempted) == ([live], [older], [newer])
    it.release(live)
    assert it.schedule().prefill == [newer], "it goes before those that never ran"


def test_preempted_utterances_keep_their_order() -> None:
    it = scheduler(max_slots=3)
    fakes = filled(it, 3)
    lives = [Fake(), Fake()]
    for live in lives:
        it.add(live)
    assert it.schedule().preempted == [fakes[2], fakes[1]]
    for live in lives:
        it.release(live)
    assert it.schedule().prefill == [fakes[1], fakes[2]]


def test_as_many_are_preempted_as_the_live_ones_memory_takes() -> None:
    it = scheduler(max_slots=4, positions=6 * GRAIN)
    fakes = filled(it, 3)
    large = Fake(row_positions=[2 * GRAIN, 2 * GRAIN])
    it.add(large)
    plan = it.schedule()
    assert (plan.prefill, plan.preempted) == ([large], [fakes[2], fakes[1]])


def test_nothing_is_preempted_in_vain() -> None:
    it = scheduler(max_slots=4, positions=6 * GRAIN)
    live = Fake(row_positions=[2 * GRAIN, 2 * GRAIN])
    it.add(live)
    assert it.schedule().prefill == [live]
    (batch,) = filled(it, 1)
    it.add(Fake(row_positions=[4 * GRAIN]))
    plan = it.schedule()
    assert (plan.prefill, plan.decode, plan.preempted) == ([], [live, batch], [])


def test_batch_work_takes_no_memory_while_a_live_utterance_waits_for_it() -> None:
    it = scheduler(max_slots=4, positions=6 * GRAIN)
    live, large, small = Fake(row_positions=[4 * GRAIN]), Fake(row_positions=[4 * GRAIN]), Fake(batch=True)
    for fake in (live, large, small):
        it.add(fake)
    assert it.schedule().prefill == [live]
    assert it.schedule().prefill == []


def test_slots_are_kept_free_of_batch_work() -> None:
    it = scheduler(max_slots=3, live_slots=2)
    (running,) = filled(it, 1)
    it.add(Fake(batch=True))
    assert it.schedule().prefill == []
    lives = [Fake(), Fake()]
    for live in lives:
        it.add(live)
    plan = it.schedule()
    assert (plan.prefill, plan.decode, plan.preempted) == (lives, [running], [])


def test_a_stream_that_has_begun_keeps_its_slot() -> None:
    it = scheduler(max_slots=2)
    begun, other = filled(it, 2)
    begun.begun = other.begun = True
    it.add(Fake())
    assert it.schedule().preempted == []
    begun.begun = False
    assert it.schedule().preempted == [begun]


def test_a_preempted_utterance_can_be_cancelled() -> None:
    it = scheduler(max_slots=1)
    (batch,), live = filled(it, 1), Fake()
    it.add(live)
    it.schedule()
    it.release(batch)
    it.release(live)
    assert it.idle


def test_the_vocoder_takes_batch_chunks_last_and_never_with_live_ones() -> None:
    s3gen = FakeS3Gen()
    batch = [chunk(job(batch=True)) for _ in range(4)]
    stream, whole = chunk(job(stream=True)), chunk(job())
    done = vocode(s3gen, [*batch, whole, stream])
    assert s3gen.batches == [1, 1, 3, 1]
    assert done == [stream, whole, *batch]


def steps_to_first_chunk(fake: FakeEngine) -> int:
    """Steps from now until a chunk of a live stream is in the vocoder's queue."""
    for count in range(100):
        while not fake.vocoder.queued.empty():
            if fake.vocoder.queued.get().first:
                return count
        fake.engine._take_orders()
        fake.engine.step()
    raise AssertionError("no chunk after 100 steps")


def test_with_all_slots_full_of_batch_work_a_stream_waits_one_step_more() -> None:
    alone = FakeEngine(max_slots=3)
    alone.stream("x" * 40)
    fewest = steps_to_first_chunk(alone)
    busy = FakeEngine(max_slots=3)
    for _ in range(6):
        busy.submit("x" * 200, priority="batch")
    busy.engine._take_orders()
    for _ in range(5):
        busy.engine.step()
    assert (busy.engine.status().slots_batch, busy.engine.status().batch_waiting) == (3, 3)
    busy.stream("x" * 40)
    busy.engine.step()  # was under way when the stream came: it has not read its orders
    assert 1 + steps_to_first_chunk(busy) <= fewest + 1


def test_with_a_full_vocoder_a_stream_waits_for_the_batch_under_way() -> None:
    with FakeEngine(max_slots=8, vocoder_batch=2) as fake:
        fake.s3gen.gate.clear()
        fake.s3gen.entered.clear()
        for _ in range(6):
            fake.submit("x" * 20, priority="batch")
        fake.vocoder.wait_for(6)
        assert fake.s3gen.entered.wait(WAIT)
        before = len(fake.s3gen.batches)
        _, listener = fake.stream("x" * 40)
        assert fake.vocoder.wait_for(1)[0].first
        fake.s3gen.gate.set()
        listener.take_stream()
        fake.answers.take_all(6)
    # the batch under way, and then the stream's first chunk, alone, before the other four utterances
    assert fake.s3gen.batches[before + 1] == 1
    assert sum(fake.s3gen.batches[before + 2 :]) >= 4


class Preemptions(NoMetrics):
    """Counts them; holds the engine's thread in a step of as many utterances as it waits for."""

    def __init__(self, utterances: int) -> None:
        self.count = 0
        self.full, self.go_on = threading.Event(), threading.Event()
        self._utterances = utterances

    def preempted(self) -> None:
        self.count += 1

    def stepped(self, seconds: float, utterances: int) -> None:
        if utterances == self._utterances and not self.full.is_set():
            self.full.set()
            assert self.go_on.wait(WAIT)


def test_a_preempted_utterance_starts_again_and_gets_the_same_answer() -> None:
    metrics = Preemptions(2)
    with FakeEngine(max_slots=2, metrics=metrics) as fake:
        for length in (150, 151):
            fake.submit("x" * length, priority="batch")
        assert metrics.full.wait(WAIT)
        _, listener = fake.stream("x" * 40)
        metrics.go_on.set()
        listener.take_stream()
        answers = [answer for answer in fake.answers.take_all(2) if isinstance(answer, SynthesisResult)]
    assert metrics.count == 1
    assert sorted(answer.speech_tokens.tolist() for answer in answers) == [[*range(151)], [*range(152)]]
    assert {answer.stats["priority"] for answer in answers} == {"batch"}


def test_a_batch_stream_that_lost_its_slot_before_its_first_chunk_has_all_of_its_audio() -> None:
    metrics = Preemptions(1)
    with FakeEngine(max_slots=1, metrics=metrics) as fake:
        _, listener = fake.stream("x" * 60, priority="batch")
        assert metrics.full.wait(WAIT)
        fake.submit("x" * 10)
        metrics.go_on.set()
        chunks = listener.take_stream()
    tokens = [token for part in chunks if not isinstance(part, RequestError) for token in part.speech_tokens]
    assert (metrics.count, tokens) == (1, [*range(61)])


def test_the_queue_of_batch_requests_and_that_of_live_ones_are_bounded_apart() -> None:
    with FakeEngine(max_queue=1, max_batch_queue=2) as fake:
        fake.runner.gate.clear()
        for _ in range(2):
            fake.submit("x" * 20, priority="batch")
        with pytest.raises(Overloaded, match="2 batch requests are under way"):
            fake.submit(priority="batch")
        fake.submit()
        with pytest.raises(Overloaded, match="1 requests are under way"):
            fake.submit()
        fake.runner.gate.set()
        fake.answers.take_all(3)


def text(priority: bytes) -> dict[str, Any]:
    return {name: np.array([[value]], dtype=object) for name, value in (("text", b"Hello."), ("priority", priority))}


def test_a_requests_priority_is_one_of_two_words() -> None:
    terms = contract.Terms(max_text_chars=100, max_seconds=40.0)
    assert contract.parse(text(b"batch"), terms).request.priority == "batch"
    assert SynthesisRequest("Hello.", seed=1).priority == "live"
    with pytest.raises(InvalidRequest, match="priority is 'urgent'; it must be one of live, batch"):
        contract.parse(text(b"urgent"), terms)


def make_engine(path: Path, folder: Path, metrics: NoMetrics, **settings: Any) -> Engine:
    store = str(folder / "voices.sqlite")
    config = Config(checkpoint=str(path), watermark=False, dtype="float32", voice_store=store, **settings)
    return assemble.build(config, metrics=metrics)


def test_kept_slots_leave_some_for_batch_work(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="live_slots is 2; it must be below the number of slots, 2"):
        make_engine(tiny_path, tmp_path, NoMetrics(), max_slots=2, live_slots=2)


def speech(engine: Engine, answers: Answers, seed: int, **changes: Any) -> None:
    line = "It was a cold day in the middle of winter."
    engine.submit(SynthesisRequest(line, seed=seed, max_seconds=2.0, **changes), answers.put)


def tokens_of(answers: Answers, count: int) -> dict[int, list[int]]:
    """Tokens by seed."""
    taken = answers.take_all(count)
    return {it.stats["seed"]: it.speech_tokens.tolist() for it in taken if isinstance(it, SynthesisResult)}


def test_real_networks_draw_the_same_tokens_after_a_preemption(tiny_path: Path, tmp_path: Path) -> None:
    metrics, answers = Preemptions(2), Answers()
    engine = make_engine(tiny_path, tmp_path, metrics, max_slots=2)
    engine.start()
    alone: dict[int, list[int]] = {}
    for seed in (1, 2, 3):
        speech(engine, answers, seed)
        alone |= tokens_of(answers, 1)
    for seed in (1, 2):
        speech(engine, answers, seed, priority="batch")
    assert metrics.full.wait(WAIT)
    speech(engine, answers, 3)
    metrics.go_on.set()
    assert tokens_of(answers, 3) == alone
    assert metrics.count == 1
    assert all(alone.values())
    engine.close()
