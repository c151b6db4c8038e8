"""HTTP through `tritonclient.http`, which runs on gevent."""

# ruff: noqa: ARG002 - `stream` has the protocol's signature and refuses

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any

import gevent  # type: ignore[import-untyped]
import tritonclient.http
from gevent._hub_local import get_hub_if_exists  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException

from chatterbox_client.errors import InvalidRequest
from chatterbox_client.request import Tensors
from chatterbox_client.transports import convert


class HttpTransport:
    """One connection per call, so that any number of threads or greenlets can share the transport.

    `tritonclient.http`'s client and its sockets belong to the thread that made them. Connecting anew costs 0.5 ms on
    one machine, 1.3 ms where the thread has no gevent hub yet; an utterance takes hundreds.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._url = url
        self._headers = headers

    def infer(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Tensors:
        """See `Transport.infer`."""
        arguments = convert.call_arguments(tritonclient.http, tensors, outputs)
        with self._connection(timeout) as client:
            return convert.answer(client.infer(model, headers=self._headers, **arguments), outputs)

    def stream(
        self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None
    ) -> Generator[Tensors, None, None]:
        """Raises InvalidRequest: `tritonclient` streams over gRPC only."""
        raise InvalidRequest("streams need gRPC: give the protocol 'grpc' and its port")

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
                self._url, connection_timeout=timeout, network_timeout=timeout
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


@contextmanager
def _gevent_hub() -> Iterator[None]:
    """Destroys the hub that a call leaves in a thread of its own: three file descriptors that gevent never frees."""
    ours = get_hub_if_exists() is None and threading.current_thread() is not threading.main_thread()
    try:
        yield
    finally:
        if ours:
            gevent.get_hub().destroy(destroy_loop=True)
