"""Responses through Triton's response senders, for the models of this repository.

Triton's `pb_utils` module is passed in, because it exists only inside a model's process. Imports no torch.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
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
from chatterbox_engine.serving.codec import Tensors
from chatterbox_engine.serving.request_log import RequestLog

_LONGEST = 600
"""Maximum characters of an error. gRPC allows 8 kB, at up to 12 bytes a character; more is RESOURCE_EXHAUSTED."""

_SHOWN = 8
"""Maximum number of unknown fields that a message names."""

POLL_SECONDS = 0.1
"""Polling interval for cancelled requests. One poll costs about 50 us in the server's and the model's processes."""

_CODES: tuple[tuple[type[RequestError] | tuple[type[RequestError], ...], str, str], ...] = (
    ((InvalidRequest, Forbidden), "INVALID_ARG", "INVALID_ARGUMENT"),
    (NotFound, "NOT_FOUND", "NOT_FOUND"),
    ((Overloaded, Unavailable, DeadlineExceeded), "UNAVAILABLE", "UNAVAILABLE"),
    (Cancelled, "CANCELLED", "CANCELLED"),
    (RequestError, "INTERNAL", "INTERNAL"),
)
"""Each error's code in Triton and in gRPC."""


_PARAMETERS = {"id", "origin"}
"""Supported request parameters: its id, and the header that the launcher makes Triton forward. Names that begin with
`triton_` are Triton's own. Names are case-insensitive, as headers are."""


def tensors_of(request: Any) -> dict[str, npt.NDArray[Any]]:
    """A request's inputs by name.

    Raises InvalidRequest for unknown parameters: Triton turns the fields of `generate` that are not inputs into
    parameters.
    """
    unknown = [name for name in json.loads(request.parameters() or "{}") if not _is_known(name.lower())]
    if unknown:
        raise InvalidRequest(f"unknown field {', '.join(map(quote, unknown[:_SHOWN]))}: the model has no such input")
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _is_known(parameter: str) -> bool:
    return parameter in _PARAMETERS or parameter.startswith("triton_")


class Reply:
    """Sends the responses to one request and marks the last one as final. Thread-safe.

    The sender is released with the last response: freed at process exit, it would access shared memory that is already
    unmapped (2.51: SIGSEGV).

    In a gRPC stream Triton sends only an error's message, so a stream's message begins with its gRPC status:
    "NOT_FOUND: ...".
    """

    def __init__(self, pb_utils: Any, request: Any, log: RequestLog, *, stream: bool = False) -> None:
        self._pb_utils = pb_utils
        self._stream = stream
        self._log = log
        self._id = request.request_id()
        self._sender = request.get_response_sender()  # None once the last response is sent; guarded by the lock
        self._lock = threading.Lock()

    def send(self, tensors: Tensors, *, last: bool = True) -> None:
        """Sends a response."""
        outputs = [self._pb_utils.Tensor(name, value) for name, value in tensors.items()]
        self._send(self._pb_utils.InferenceResponse(output_tensors=outputs), last=last)
        if last:
            self._log.answered(self._id, tensors)

    def fail(self, error: RequestError) -> None:
        """Sends an error, with the code that determines the HTTP and gRPC status."""
        code, status = next((code, status) for kinds, code, status in _CODES if isinstance(error, kinds))
        message = (f"{status}: {error}" if self._stream else str(error))[:_LONGEST]
        failure = self._pb_utils.TritonError(message, getattr(self._pb_utils.TritonError, code))
        self._send(self._pb_utils.InferenceResponse(output_tensors=[], error=failure), last=True)
        self._log.failed(self._id, status, str(error))

    def is_cancelled(self) -> bool | None:
        """Whether the client cancelled or disconnected, as far as Triton knows; None after the last response."""
        with self._lock:  # the last response frees the state that `is_cancelled` reads
            return None if self._sender is None else bool(self._sender.is_cancelled())

    def _send(self, response: Any, *, last: bool) -> None:
        with self._lock:
            self._sender.send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
            if last:
                self._sender = None


class CancellationWatcher:
    """Detects cancelled requests. Triton offers no notification of a cancellation, so a thread polls."""

    def __init__(self, seconds: float = POLL_SECONDS) -> None:
        self._seconds = seconds
        self._changed = threading.Condition()
        self._open: dict[Reply, Callable[[], None]] = {}  # guarded by the condition
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="cancellation", daemon=True)
        self._thread.start()

    def watch(self, reply: Reply, cancel: Callable[[], None]) -> None:
        """Calls `cancel`, on the watcher's thread, if the client cancels or disconnects before the last response."""
        with self._changed:
            self._open[reply] = cancel
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
                cancelled = reply.is_cancelled()
                if cancelled is False:
                    continue
                with self._changed:
                    cancel = self._open.pop(reply)
                if cancelled:
                    cancel()

    def _next_round(self) -> list[Reply] | None:
        """Waits for an open request, then for one polling interval; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._closed)
            self._changed.wait_for(lambda: self._closed, self._seconds)
            return None if self._closed else list(self._open)
