"""HTTP through `tritonclient.http`, which runs on gevent. It has no streams, so they use the standard library."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any

import gevent  # type: ignore[import-untyped]
import gevent.ssl  # type: ignore[import-untyped]
import tritonclient.http
from gevent._hub_local import get_hub_if_exists  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException

from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from chatterbox_client.transports import convert, sse

_PIECE = 1 << 16
_DRAIN_SECONDS = 1.0


class HttpTransport:
    """One connection per call, so that any number of threads or greenlets can share the transport.

    `tritonclient.http`'s client and its sockets belong to the thread that made them. Connecting again costs 0.5 ms
    on one machine, 1.3 ms if the thread has no gevent hub yet; an utterance takes hundreds.
    """

    def __init__(self, url: str, headers: dict[str, str], *, secure: bool = False) -> None:
        self._url = url
        self._headers = headers
        self._secure = secure

    def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        """See `Transport.infer`."""
        arguments = convert.call_arguments(tritonclient.http, tensors, outputs)
        with self._connection(timeout) as client:
            return convert.answer(
                client.infer(
                    model, headers={**self._headers, **context.headers}, request_id=context.request_id, **arguments
                ),
                outputs,
            )

    def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Generator[Tensors, None, None]:
        """See `Transport.stream`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        make = HTTPSConnection if self._secure else HTTPConnection
        headers = {**sse.HEADERS, **self._headers, **context.headers}
        host, _, base = self._url.partition("/")
        path = (f"/{base}" if base else "") + sse.path(model)
        try:
            with closing(make(host, timeout=timeout)) as connection:
                connection.request("POST", path, sse.body(tensors, context.request_id), headers)
                yield from _answers(connection, sse.Events(outputs), deadline)
        except TimeoutError as error:
            raise convert.timed_out(self._url, timeout) from error
        except (OSError, HTTPException) as error:
            raise convert.unreachable(self._url, "http", error) from error

    def ready(self, model: str, timeout: float | None) -> bool:
        """See `Transport.ready`."""
        with self._connection(timeout) as client:
            return bool(client.is_model_ready(model, headers=self._headers))

    def metadata(self, model: str, timeout: float | None) -> Mapping[str, Any]:
        """See `Transport.metadata`."""
        with self._connection(timeout) as client:
            metadata: dict[str, Any] = client.get_model_metadata(model, headers=self._headers)
            return metadata

    def close(self) -> None:
        """Nothing stays open between calls."""

    @contextmanager
    def _connection(self, timeout: float | None) -> Iterator[Any]:
        with _gevent_hub(), gevent.Timeout(timeout) as timer:
            client = tritonclient.http.InferenceServerClient(
                self._url,
                connection_timeout=timeout,
                network_timeout=timeout,
                ssl=self._secure,
                ssl_context_factory=gevent.ssl.create_default_context,
            )
            try:
                yield client
            except InferenceServerException as error:
                raise convert.typed(error) from error
            except (gevent.Timeout, TimeoutError) as error:
                if isinstance(error, gevent.Timeout) and error is not timer:
                    raise  # the caller's own, around this call
                raise convert.timed_out(self._url, timeout) from error
            except (OSError, HTTPException) as error:
                raise convert.unreachable(self._url, "http", error) from error
            finally:
                client.close()


def _answers(connection: HTTPConnection, events: sse.Events, deadline: float | None) -> Generator[Tensors, None, None]:
    """The response on a connection over which a stream was requested."""
    socket = connection.sock  # an answer without a length takes it from the connection
    _limit(socket, deadline)
    with connection.getresponse() as response:
        if response.status != 200:
            raise sse.refusal(response.status, response.read())
        try:
            while data := response.read1(_PIECE):
                yield from events.feed(data)
                _limit(socket, deadline)
        finally:
            if events.complete:  # the server ends the answer itself
                socket.settimeout(_DRAIN_SECONDS)
                with suppress(OSError, HTTPException):
                    response.read()


def _limit(socket: Any, deadline: float | None) -> None:
    if deadline is not None:
        socket.settimeout(max(1e-3, deadline - time.monotonic()))


@contextmanager
def _gevent_hub() -> Iterator[None]:
    """Destroys the hub that a call leaves in its thread: three file descriptors that gevent never frees.

    Ctrl-C during a wait in this hub is raised from the call; by default gevent also prints its traceback.
    """
    fresh = get_hub_if_exists() is None
    if fresh:
        hub = gevent.get_hub()
        hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)
    ours = fresh and threading.current_thread() is not threading.main_thread()
    try:
        yield
    finally:
        if ours:
            gevent.get_hub().destroy(destroy_loop=True)
