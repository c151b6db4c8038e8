"""Requests are answered once and in order, regardless of how they end."""

from __future__ import annotations

import time

import numpy as np
import pytest

from chatterbox_engine.errors import Cancelled, DeadlineExceeded, EngineFailed, Overloaded, RequestError, Unavailable
from chatterbox_engine.metrics import NoMetrics
from chatterbox_engine.synthesis.jobs import Job
from chatterbox_engine.synthesis.register import Register
from chatterbox_engine.types import SynthesisChunk, SynthesisRequest, SynthesisResult

LONG = 1000.0


class Desk:
    """A register and the answers of its receivers."""

    def __init__(self, allowance: float = LONG) -> None:
        self.got: list[tuple[int, object]] = []
        self.ended: list[int] = []
        self.register = Register(
            limit=3,
            batch_limit=3,
            allowance=allowance,
            metrics=NoMetrics(),
            ended=lambda job: self.ended.append(job.number),
        )

    def job(self, number: int, age: float = 0.0) -> Job:
        arrived = time.monotonic() - age
        job = Job(
            number, SynthesisRequest("Hello.", seed=1), lambda part: self.got.append((number, part)), arrived=arrived
        )
        self.register.take(job)
        return job

    def answers(self) -> list[tuple[int, type]]:
        self.register.end()
        self.register.answer()
        return [(number, type(part)) for number, part in self.got]


def chunk(index: int, *, last: bool = False) -> SynthesisChunk:
    return SynthesisChunk(index, np.zeros(3, dtype=np.float32), np.zeros(1, dtype=np.int32), {} if last else None)


def test_a_request_has_one_answer_and_what_it_holds_is_freed_once() -> None:
    desk = Desk()
    job = desk.job(1)
    for error in (Cancelled("cancelled"), Overloaded("too late")):
        desk.register.settle(job, error)
    assert desk.answers() == [(1, Cancelled)]
    assert desk.ended == [1]
    assert job not in desk.register
    assert desk.register.find(1) is None


def test_no_more_requests_than_the_limit_are_taken_until_one_ends() -> None:
    desk = Desk()
    first = desk.job(1)
    desk.job(2)
    desk.job(3)
    with pytest.raises(Overloaded, match="3 requests are under way"):
        desk.job(4)
    desk.register.settle(first, Cancelled("cancelled"))
    desk.job(5)
    assert len(desk.register) == 3


def test_chunks_come_in_order_and_none_after_the_end() -> None:
    desk = Desk()
    job = desk.job(1)
    parts = [chunk(0), chunk(1), chunk(2, last=True), chunk(3)]
    for part in parts:
        desk.register.send(job, part)
    desk.answers()
    assert [part for _, part in desk.got] == parts[:3]
    assert desk.ended == [1]


def test_a_whole_answer_ends_its_request() -> None:
    desk = Desk()
    job = desk.job(1)
    for _ in range(2):
        desk.register.send(job, SynthesisResult(np.zeros(3, dtype=np.float32), np.zeros(1, dtype=np.int32), {}))
    assert desk.answers() == [(1, SynthesisResult)]
    assert job not in desk.register


def test_tokens_are_awaited_until_those_of_every_request_are_drawn_or_it_has_ended() -> None:
    desk = Desk()
    jobs = [desk.job(number) for number in (1, 2)]
    desk.register.decoded(jobs[0])
    assert desk.register.decoding
    desk.register.settle(jobs[1], Cancelled("cancelled"))
    assert not desk.register.decoding
    assert jobs[0] in desk.register


def test_only_requests_that_are_too_old_are_ended() -> None:
    desk = Desk(allowance=50.0)
    assert desk.register.until_deadline() is None
    desk.job(1, age=60.0)
    desk.job(2, age=51.0)
    desk.job(3, age=10.0)
    assert desk.register.until_deadline() == 0.0
    desk.register.expire()
    left = desk.register.until_deadline()
    assert left is not None
    assert 30.0 < left <= 40.0
    assert desk.answers() == [(1, DeadlineExceeded), (2, DeadlineExceeded)]


@pytest.mark.parametrize("failed", [False, True])
def test_at_the_end_everyone_is_answered_and_no_one_taken(failed: bool) -> None:
    desk = Desk()
    for number in (1, 2):
        desk.job(number)
    if failed:
        desk.register.fail(ValueError("broken"), lambda: desk.got.append((0, "then")))
    else:
        desk.register.close()
    with pytest.raises(Unavailable, match="shutting down"):
        desk.job(3)
    expected: type[RequestError] = EngineFailed if failed else Unavailable
    assert desk.answers()[:2] == [(1, expected), (2, expected)]
    assert desk.got[2:] == ([(0, "then")] if failed else [])


def test_draining_takes_nobody_new_and_says_so_after_the_last_answer() -> None:
    desk = Desk()
    job = desk.job(1)
    desk.register.drain(LONG, lambda: desk.got.append((0, "drained")))
    with pytest.raises(Unavailable, match="the server is shutting down"):
        desk.job(2)
    desk.register.expire()
    desk.register.send(job, chunk(0))
    desk.register.send(job, chunk(1, last=True))
    assert desk.answers() == [(1, SynthesisChunk), (1, SynthesisChunk), (0, str)]


def test_draining_a_register_without_requests_is_done_at_once() -> None:
    desk = Desk()
    desk.register.drain(0.0, lambda: desk.got.append((0, "drained")))
    assert desk.answers() == [(0, str)]


def test_what_is_not_finished_when_draining_ends_is_told_why() -> None:
    desk = Desk(allowance=50.0)
    desk.job(1, age=60.0)
    desk.job(2)
    desk.register.drain(0.0, lambda: desk.got.append((0, "drained")))
    assert desk.register.until_deadline() == 0.0
    desk.register.expire()
    assert desk.answers() == [(1, DeadlineExceeded), (2, Unavailable), (0, str)]
    assert "the server is shutting down: the request did not finish" in str(desk.got[1][1])


def test_a_receiver_that_raises_keeps_no_answer_from_the_others() -> None:
    desk = Desk()
    broken = Job(1, SynthesisRequest("Hello.", seed=1), lambda _part: 1 / 0)
    desk.register.take(broken)
    other = desk.job(2)
    for job in (broken, other):
        desk.register.settle(job, Cancelled("cancelled"))
    with pytest.raises(ZeroDivisionError):
        desk.register.answer()
    assert desk.answers() == [(2, Cancelled)]
