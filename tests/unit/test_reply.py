"""Answers through a response sender, and clients that go away."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chatterbox_engine.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestError,
    Unavailable,
)
from chatterbox_engine.serving.reply import Attendance, Reply, tensors_of

WAIT = 20.0


class Sender:
    """Triton's response sender: freed with its last response, as the real one."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, int]] = []
        self.asked = threading.Event()
        self.gone = False

    def send(self, response: Any, flags: int) -> None:
        self._check()
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        self._check()
        self.asked.set()
        return self.gone

    def _check(self) -> None:
        assert not self.sent or self.sent[-1][1] == 0, "used after its last response"


class TritonError:
    INVALID_ARG, NOT_FOUND, UNAVAILABLE, CANCELLED, INTERNAL = range(5)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


PB_UTILS = SimpleNamespace(
    Tensor=lambda name, value: (name, value),
    TritonError=TritonError,
    InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(outputs=output_tensors, error=error),
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
)


def reply_to(sender: Sender, *, stream: bool = False) -> Reply:
    return Reply(PB_UTILS, SimpleNamespace(get_response_sender=lambda: sender), stream=stream)


def test_responses_are_sent_and_the_last_is_marked() -> None:
    sender = Sender()
    reply = reply_to(sender)
    for index in range(3):
        reply.send({"audio": np.zeros(index)}, last=index == 2)
    assert [len(response.outputs[0][1]) for response, _ in sender.sent] == [0, 1, 2]
    assert [flags for _, flags in sender.sent] == [0, 0, 1]


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (InvalidRequest("x"), TritonError.INVALID_ARG, "INVALID_ARGUMENT"),
        (NotFound("x"), TritonError.NOT_FOUND, "NOT_FOUND"),
        (Overloaded("x"), TritonError.UNAVAILABLE, "UNAVAILABLE"),
        (Unavailable("x"), TritonError.UNAVAILABLE, "UNAVAILABLE"),
        (DeadlineExceeded("x"), TritonError.UNAVAILABLE, "UNAVAILABLE"),
        (Cancelled("x"), TritonError.CANCELLED, "CANCELLED"),
        (EngineFailed("x"), TritonError.INTERNAL, "INTERNAL"),
        (RequestError("x"), TritonError.INTERNAL, "INTERNAL"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_its_code_and_ends_the_answer(error: RequestError, code: int, status: str) -> None:
    for stream, message in ((False, "x"), (True, f"{status}: x")):
        sender = Sender()
        reply = reply_to(sender, stream=stream)
        reply.fail(error)
        ((response, flags),) = sender.sent
        assert (response.error.message, response.error.code, flags) == (message, code, 1)
        assert reply.abandoned() is None


def attended(check: Callable[[Attendance], None]) -> None:
    attendance = Attendance(seconds=0.001)
    try:
        check(attendance)
    finally:
        attendance.close()


def test_a_client_that_goes_is_noticed_once() -> None:
    def check(attendance: Attendance) -> None:
        sender, given_up = Sender(), queue.SimpleQueue[str]()
        reply = reply_to(sender)
        attendance.watch(reply, lambda: given_up.put("it"))
        assert sender.asked.wait(WAIT)
        sender.gone = True
        assert given_up.get(timeout=WAIT) == "it"
        other = Sender()
        attendance.watch(reply_to(other), lambda: None)
        assert other.asked.wait(WAIT)
        assert given_up.empty()

    attended(check)


def test_nobody_asks_after_the_last_response() -> None:
    def check(attendance: Attendance) -> None:
        senders = [Sender() for _ in range(3)]
        replies = [reply_to(sender) for sender in senders]
        for reply in replies:
            attendance.watch(reply, lambda: pytest.fail("its client is still there"))
        for sender, reply in zip(senders, replies, strict=True):
            assert sender.asked.wait(WAIT)
            reply.send({})
        for _ in range(3):  # rounds; the senders would complain
            another = Sender()
            attendance.watch(reply_to(another), lambda: None)
            assert another.asked.wait(WAIT)
        assert len(attendance._open) == 3

    attended(check)


def test_inputs_are_read_by_name() -> None:
    tensor = SimpleNamespace(name=lambda: "seed", as_numpy=lambda: np.array([[7]]))
    assert tensors_of(SimpleNamespace(inputs=lambda: [tensor]))["seed"].item() == 7
