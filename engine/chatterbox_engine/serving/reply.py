"""Answers through Triton's response senders, for the models of this repository.

Triton's own module is handed in, because it exists only inside a model's process. Imports no torch.
"""

from __future__ import annotations

import json
import textwrap
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from chatterbox_engine.errors import (
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestError,
    Unavailable,
    quote,
)

Tensors = Mapping[str, npt.NDArray[Any]]

_LONGEST = 600
"""Characters of an error. gRPC takes 8 kB, and up to 12 bytes for a character; beyond it says RESOURCE_EXHAUSTED."""

_SHOWN = 8
"""Unknown fields that a message names."""

ASK_SECONDS = 0.1
"""Between two questions whether a client is gone. Each costs some 50 us of the server's and the model's processes."""

_LOGGED, _LOGGED_ID = 300, 64
"""Characters of an error and of a request's id in the log."""

_CODES: tuple[tuple[type[RequestError] | tuple[type[RequestError], ...], str, str], ...] = (
    ((InvalidRequest, Forbidden), "INVALID_ARG", "INVALID_ARGUMENT"),
    (NotFound, "NOT_FOUND", "NOT_FOUND"),
    ((Overloaded, Unavailable, DeadlineExceeded), "UNAVAILABLE", "UNAVAILABLE"),
    (Cancelled, "CANCELLED", "CANCELLED"),
    (RequestError, "INTERNAL", "INTERNAL"),
)
"""What Triton calls an error, and what gRPC does."""


_PARAMETERS = {"id", "origin"}
"""Parameters of a request that mean something: its number, and the header that the launcher has Triton hand on. Names
that begin with `triton_` are Triton's own. Their case does not matter, as a header's does not."""


def tensors_of(request: Any) -> dict[str, npt.NDArray[Any]]:
    """A request's inputs by name.

    Raises InvalidRequest for parameters that nothing knows: Triton makes them of the fields of `generate` that are no
    inputs.
    """
    unknown = [name for name in json.loads(request.parameters() or "{}") if not _is_known(name.lower())]
    if unknown:
        raise InvalidRequest(f"unknown field {', '.join(map(quote, unknown[:_SHOWN]))}: the model has no such input")
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _is_known(parameter: str) -> bool:
    return parameter in _PARAMETERS or parameter.startswith("triton_")


class Reply:
    """The answer to one request: responses, the last one marked as such. Any thread may use it.

    The sender is let go with the last response: one that is freed as late as the process ends would use shared memory
    which is gone by then (2.51: SIGSEGV).

    Of an error inside a gRPC stream Triton sends the message alone, so a stream's begins with its gRPC status:
    "NOT_FOUND: ...".
    """

    def __init__(self, pb_utils: Any, request: Any, *, model: str, stream: bool = False) -> None:
        """model: the name of the one that answers, for the log."""
        self._pb_utils = pb_utils
        self._stream = stream
        self._name = f"{model}: request {request.request_id()[:_LOGGED_ID]!r}"
        self._sender = request.get_response_sender()  # None once the last response is sent; guarded by the lock
        self._lock = threading.Lock()

    def send(self, tensors: Tensors, *, last: bool = True) -> None:
        """Sends a response."""
        outputs = [self._pb_utils.Tensor(name, value) for name, value in tensors.items()]
        self._send(self._pb_utils.InferenceResponse(output_tensors=outputs), last=last)

    def fail(self, error: RequestError) -> None:
        """Sends an error, with the code that HTTP and gRPC turn into their own status, and logs why in one line."""
        code, status = next((code, status) for kinds, code, status in _CODES if isinstance(error, kinds))
        message = (f"{status}: {error}" if self._stream else str(error))[:_LONGEST]
        if not isinstance(error, Cancelled):  # whose client knows
            reason = textwrap.shorten(str(error), _LOGGED, placeholder=" ...")
            self._pb_utils.Logger.log_warn(f"{self._name} ends with {status}: {reason}")
        failure = self._pb_utils.TritonError(message, getattr(self._pb_utils.TritonError, code))
        self._send(self._pb_utils.InferenceResponse(output_tensors=[], error=failure), last=True)

    def abandoned(self) -> bool | None:
        """Whether the client is gone, as far as Triton knows; None when the last response is sent."""
        with self._lock:  # Triton frees what this asks for together with the last response
            return None if self._sender is None else bool(self._sender.is_cancelled())

    def _send(self, response: Any, *, last: bool) -> None:
        with self._lock:
            self._sender.send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
            if last:
                self._sender = None


class Attendance:
    """Finds out which clients are gone. Triton tells a model only when it is asked, so a thread asks now and then."""

    def __init__(self, seconds: float = ASK_SECONDS) -> None:
        self._seconds = seconds
        self._changed = threading.Condition()
        self._open: dict[Reply, Callable[[], None]] = {}  # guarded by the condition
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="attendance", daemon=True)
        self._thread.start()

    def watch(self, reply: Reply, give_up: Callable[[], None]) -> None:
        """Calls `give_up`, from a thread of its own, if the client goes before the last response."""
        with self._changed:
            self._open[reply] = give_up
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (replies := self._next_round()) is not None:
            for reply in replies:
                abandoned = reply.abandoned()
                if abandoned is False:
                    continue
                with self._changed:
                    give_up = self._open.pop(reply)
                if abandoned:
                    give_up()

    def _next_round(self) -> list[Reply] | None:
        """Waits while there is nobody to ask for, then until it is time to ask; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._closed)
            self._changed.wait_for(lambda: self._closed, self._seconds)
            return None if self._closed else list(self._open)
