"""Responses through a response sender, and clients that disconnect."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote as percent_encoded

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
from chatterbox_engine.serving.reply import CancellationWatcher, Reply, tensors_of
from chatterbox_engine.serving.request_log import RequestLog

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


LOG: list[str] = []

PB_UTILS = SimpleNamespace(
    Logger=SimpleNamespace(log_info=LOG.append, log_warn=LOG.append),
    Tensor=lambda name, value: (name, value),
    TritonError=TritonError,
    InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(outputs=output_tensors, error=error),
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
)


def reply_to(sender: Sender, *, stream: bool = False, request: str = "", form: str = "text") -> Reply:
    asked = SimpleNamespace(get_response_sender=lambda: sender, request_id=lambda: request)
    LOG.clear()
    return Reply(PB_UTILS, asked, RequestLog(PB_UTILS, "chatterbox", form), stream=stream)


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
        assert reply.is_cancelled() is None


def test_why_a_request_ends_is_one_short_line_of_the_log() -> None:
    reply_to(Sender(), request="r\n7" * 100).fail(NotFound("there is no voice 'a'\n" + "and more " * 100))
    [line] = LOG
    assert line.startswith("chatterbox: request 'r\\n7r")
    assert " ends with NOT_FOUND: there is no voice 'a' and more" in line
    assert line.endswith(" ...")
    assert len(line) < 500


STATS = {"voice": "anna", "characters": 6, "audio_seconds": 1.2, "ttfa_ms": 80.5, "rtf": 0.1, "device": "cpu"}
ANSWER = {"stats": np.array([[json.dumps(STATS).encode()]], dtype=np.object_)}


def test_an_answer_is_one_line_of_the_log_after_its_last_response() -> None:
    reply = reply_to(Sender(), request="r7")
    reply.send({"audio": np.zeros(1)}, last=False)
    assert not LOG
    reply.send(ANSWER)
    assert LOG == [
        "chatterbox: request 'r7' ends with OK: voice=anna characters=6 audio_seconds=1.2 ttfa_ms=80.5 rtf=0.1"
    ]
    reply_to(Sender()).send({"voices": np.zeros(1)})  # an answer that is no speech
    assert LOG == ["chatterbox: request '' ends with OK: done"]


def test_the_log_as_json_is_a_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    reply_to(Sender(), request="r7", form="json").send(ANSWER)
    reply_to(Sender(), request="r8", form="json").fail(NotFound("there is no voice\n'a'"))
    assert not LOG
    answered, failed = map(json.loads, capsys.readouterr().out.splitlines())
    assert answered.pop("time") <= failed.pop("time")
    assert answered == {
        "model": "chatterbox",
        "request": "r7",
        "status": "OK",
        "voice": "anna",
        "characters": 6,
        "audio_seconds": 1.2,
        "ttfa_ms": 80.5,
        "rtf": 0.1,
    }
    assert failed == {"model": "chatterbox", "request": "r8", "status": "NOT_FOUND", "reason": "there is no voice 'a'"}


def test_the_log_can_be_off(capsys: pytest.CaptureFixture[str]) -> None:
    reply_to(Sender(), form="off").send(ANSWER)
    reply_to(Sender(), form="off").fail(NotFound("x"))
    assert (LOG, capsys.readouterr().out) == ([], "")


def watched(check: Callable[[CancellationWatcher], None]) -> None:
    watcher = CancellationWatcher(seconds=0.001)
    try:
        check(watcher)
    finally:
        watcher.close()


def test_a_disconnected_client_is_reported_once() -> None:
    def check(watcher: CancellationWatcher) -> None:
        sender, cancelled = Sender(), queue.SimpleQueue[str]()
        reply = reply_to(sender)
        watcher.watch(reply, lambda: cancelled.put("it"))
        assert sender.asked.wait(WAIT)
        sender.gone = True
        assert cancelled.get(timeout=WAIT) == "it"
        other = Sender()
        watcher.watch(reply_to(other), lambda: None)
        assert other.asked.wait(WAIT)
        assert cancelled.empty()

    watched(check)


def test_no_request_is_polled_after_its_last_response() -> None:
    def check(watcher: CancellationWatcher) -> None:
        senders = [Sender() for _ in range(3)]
        replies = [reply_to(sender) for sender in senders]
        for reply in replies:
            watcher.watch(reply, lambda: pytest.fail("its client is still there"))
        for sender, reply in zip(senders, replies, strict=True):
            assert sender.asked.wait(WAIT)
            reply.send({})
        for _ in range(3):  # polling rounds; a sender that is polled after its last response fails
            another = Sender()
            watcher.watch(reply_to(another), lambda: None)
            assert another.asked.wait(WAIT)
        assert len(watcher._open) == 3

    watched(check)


def test_inputs_are_read_by_name() -> None:
    tensor = SimpleNamespace(name=lambda: "seed", as_numpy=lambda: np.array([[7]]))
    for known in ("", "{}", '{"id":"7","Origin":"http://localhost","triton_final":true}'):
        request = SimpleNamespace(inputs=lambda: [tensor], parameters=lambda known=known: known)
        assert tensors_of(request)["seed"].item() == 7


def test_an_unknown_parameter_is_refused_by_name() -> None:
    """Triton forwards the fields of `generate` that are not inputs, including those that only `infer` supports."""
    for name in ("nope", "Text", "priority", "timeout", "sequence_id", "binary_data_output", ""):
        request = SimpleNamespace(inputs=list, parameters=lambda name=name: json.dumps({name: 1}))
        with pytest.raises(InvalidRequest, match=f"unknown field '{name}': the model has no such input"):
            tensors_of(request)
    many = SimpleNamespace(inputs=list, parameters=lambda: json.dumps({f"{n}" * 20_000: n for n in range(10, 40)}))
    with pytest.raises(InvalidRequest, match="unknown field '1010") as caught:
        tensors_of(many)
    assert len(str(caught.value)) < 700


def test_no_error_is_too_long_for_grpc() -> None:
    sender = Sender()
    reply_to(sender, stream=True).fail(EngineFailed("\N{THUMBS UP SIGN}" * 20_000))
    ((response, _),) = sender.sent
    assert len(percent_encoded(response.error.message)) < 8000
