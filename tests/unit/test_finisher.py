"""Each request's chunks are finished in order, beside other requests', and nothing is kept of those that ended."""

from __future__ import annotations

import queue

import numpy as np

from chatterbox_engine.metrics import Served
from chatterbox_engine.synthesis.cores import Cores
from chatterbox_engine.synthesis.finisher import Finisher
from chatterbox_engine.synthesis.jobs import Chunk, Job
from chatterbox_engine.synthesis.streaming import Span
from chatterbox_engine.types import SAMPLES_PER_TOKEN, SynthesisChunk, SynthesisResult
from tests.unit.engine_fakes import CPU, WAIT, FakeWatermarker, chunk, job

Sent = tuple[Job, SynthesisResult | SynthesisChunk]
SPANS = [Span(0, 0, 2, 3, last=False), Span(0, 2, 4, 5, last=False), Span(2, 4, 6, 6, last=True)]


class Desk:
    """A finisher and what it sent."""

    def __init__(self) -> None:
        self.watermarker = FakeWatermarker()
        self.finisher = Finisher(self.watermarker, Served({}, lambda: 0), device=CPU, cores=Cores())
        self.sent: queue.SimpleQueue[Sent] = queue.SimpleQueue()
        self.crashed: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def put(self, chunk: Chunk, seconds: float = 0.0) -> None:
        wave = np.repeat(np.asarray(chunk.tokens, dtype=np.float32), SAMPLES_PER_TOKEN)
        self.finisher.put(
            chunk, wave, seconds, send=lambda job, answer: self.sent.put((job, answer)), crashed=self.crashed.put
        )

    def take(self) -> Sent:
        return self.sent.get(timeout=WAIT)


def chunks(of: Job) -> list[Chunk]:
    return [chunk(of, number, span=span) for number, span in enumerate(SPANS)]


def test_a_request_that_is_held_delays_only_itself_and_keeps_its_order() -> None:
    desk, held, others = Desk(), job(1, stream=True), job(2, stream=True)
    desk.watermarker.held = lambda wave: len(wave) == 3 * SAMPLES_PER_TOKEN  # a first chunk
    first, *rest = chunks(held)
    desk.put(first)
    assert desk.watermarker.entered.wait(WAIT)
    for each in rest:
        desk.put(each)
    desk.watermarker.held = lambda _wave: False
    for each in chunks(others):
        desk.put(each)
    assert [desk.take()[0] for _ in SPANS] == [others] * 3
    desk.watermarker.gate.set()
    sent = [desk.take() for _ in SPANS]
    desk.finisher.close()
    parts = [part for _, part in sent if isinstance(part, SynthesisChunk)]
    assert [it for it, _ in sent] == [held] * 3
    assert [part.index for part in parts] == [0, 1, 2]
    assert [part.speech_tokens.tolist() for part in parts] == [[1, 2], [3, 4], [5, 6]]
    assert [part.last for part in parts] == [False, False, True]


def test_segments_that_come_in_any_order_are_joined_in_that_of_the_text() -> None:
    desk, request = Desk(), job(segments=3)
    for number, segment in enumerate((2, 0, 1)):
        desk.put(chunk(request, segment=segment, span=Span.whole(segment + 1)), seconds=float(number))
    _, answer = desk.take()
    desk.finisher.close()
    assert isinstance(answer, SynthesisResult)
    assert answer.speech_tokens.tolist() == [1, 1, 2, 1, 2, 3]
    assert (answer.stats["segments"], answer.stats["tokens"], answer.stats["s3gen_ms"]) == (3, 6, 3000.0)


def test_nothing_is_kept_of_requests_that_ended_early() -> None:
    desk = Desk()
    for number in range(4):
        desk.put(chunks(job(number, stream=True))[0])
        desk.take()
        desk.put(chunk(job(number, segments=2)))
    desk.finisher.close()
    assert not any(desk.finisher._answers)
    assert desk.crashed.empty()


def test_what_finishing_raises_is_passed_on() -> None:
    desk = Desk()
    desk.watermarker.error = ValueError("broken part")
    desk.put(chunk(job()))
    assert desk.crashed.get(timeout=WAIT) is desk.watermarker.error
    desk.finisher.close()
    assert desk.sent.empty()
