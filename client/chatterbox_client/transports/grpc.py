"""gRPC through `tritonclient.grpc`, for threads and for asyncio."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from chatterbox_client.errors import ChatterboxClientError, Timeout, Unavailable
from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from chatterbox_client.transports import convert
from chatterbox_client.transports.grpc_stream import OPTIONS, AsyncStreamChannel, StreamChannel, metadata

_PROBE_SECONDS = 5.0


class GrpcTransport:
    """One channel, shared by all threads."""

    def __init__(self, url: str, headers: dict[str, str], *, secure: bool = False) -> None:
        self._url = url
        self._headers = metadata(headers)
        self._client = tritonclient.grpc.InferenceServerClient(url, ssl=secure, channel_args=OPTIONS)
        self._streams = StreamChannel(url, self._headers, secure=secure)

    def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        """See `Transport.infer`."""
        arguments = convert.call_arguments(tritonclient.grpc, tensors, outputs)
        return convert.answer(self._call("infer", model, timeout, context, **arguments), outputs)

    def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Generator[Tensors, None, None]:
        """See `Transport.stream`."""
        try:
            yield from self._streams.stream(model, tensors, outputs, timeout, context)
        except ChatterboxClientError as error:
            reason = self._unreachable() if isinstance(error, Unavailable) else None
            raise _located(error, self._url, timeout, reason) from error.__cause__

    def ready(self, model: str, timeout: float | None) -> bool:
        """See `Transport.ready`."""
        return bool(self._call("is_model_ready", model, timeout))

    def metadata(self, model: str, timeout: float | None) -> Mapping[str, Any]:
        """See `Transport.metadata`."""
        return _metadata(self._call("get_model_metadata", model, timeout))

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()
        self._streams.close()

    def _call(
        self, method: str, model: str, timeout: float | None, context: RequestContext = NO_CONTEXT, **arguments: Any
    ) -> Any:
        try:
            call = getattr(self._client, method)
            return call(model, **_accompanying(self._headers, context), client_timeout=timeout, **arguments)
        except InferenceServerException as error:
            typed = convert.typed(error)
            reason = self._unreachable() if isinstance(typed, Unavailable) else None
            raise _located(typed, self._url, timeout, reason) from error

    def _unreachable(self) -> str | None:
        try:
            self._client.is_server_live(client_timeout=_PROBE_SECONDS)
        except InferenceServerException as error:
            return _reason(error)
        return None


class AsyncGrpcTransport:
    """One channel, opened at the first call and bound to its event loop."""

    def __init__(self, url: str, headers: dict[str, str], *, secure: bool = False) -> None:
        self._url = url
        self._headers = metadata(headers)
        self._secure = secure

    async def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        """See `Transport.infer`."""
        arguments = convert.call_arguments(tritonclient.grpc, tensors, outputs)
        return convert.answer(await self._call("infer", model, timeout, context, **arguments), outputs)

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        """See `Transport.stream`."""
        try:
            async with contextlib.aclosing(self._streams.stream(model, tensors, outputs, timeout, context)) as answers:
                async for answer in answers:
                    yield answer
        except ChatterboxClientError as error:
            reason = await self._unreachable() if isinstance(error, Unavailable) else None
            raise _located(error, self._url, timeout, reason) from error.__cause__

    async def ready(self, model: str, timeout: float | None) -> bool:
        """See `Transport.ready`."""
        return bool(await self._call("is_model_ready", model, timeout))

    async def metadata(self, model: str, timeout: float | None) -> Mapping[str, Any]:
        """See `Transport.metadata`."""
        return _metadata(await self._call("get_model_metadata", model, timeout))

    async def close(self) -> None:
        """See `Transport.close`."""
        if "_client" in vars(self):
            await self._client.close()
        if "_streams" in vars(self):
            await self._streams.close()

    @cached_property
    def _client(self) -> Any:
        return tritonclient.grpc.aio.InferenceServerClient(self._url, ssl=self._secure, channel_args=OPTIONS)

    @cached_property
    def _streams(self) -> AsyncStreamChannel:
        return AsyncStreamChannel(self._url, self._headers, secure=self._secure)

    async def _call(
        self, method: str, model: str, timeout: float | None, context: RequestContext = NO_CONTEXT, **arguments: Any
    ) -> Any:
        try:
            call = getattr(self._client, method)
            return await call(model, **_accompanying(self._headers, context), client_timeout=timeout, **arguments)
        except InferenceServerException as error:
            typed = convert.typed(error)
            reason = await self._unreachable() if isinstance(typed, Unavailable) else None
            raise _located(typed, self._url, timeout, reason) from error

    async def _unreachable(self) -> str | None:
        try:
            await self._client.is_server_live(client_timeout=_PROBE_SECONDS)
        except InferenceServerException as error:
            return _reason(error)
        return None


def _accompanying(headers: Mapping[str, str], context: RequestContext) -> dict[str, Any]:
    """Arguments of `tritonclient`'s calls; only `infer` knows an id."""
    known = {"request_id": context.request_id} if context.request_id else {}
    return {"headers": {**headers, **metadata(context.headers)}, **known}


def _reason(probe: InferenceServerException) -> str | None:
    """Why the server cannot be reached; None when it answered anything at all.

    gRPC gives a refused connection and a full server the same code, UNAVAILABLE, and its messages change between
    versions. So after that code the server is asked whether it lives: one that says UNAVAILABLE again is not there.
    """
    typed = convert.typed(probe)
    return typed.message if isinstance(typed, Unavailable) else None


def _located(
    error: ChatterboxClientError, url: str, timeout: float | None, unreachable: str | None
) -> ChatterboxClientError:
    if unreachable is not None:
        return convert.unreachable(url, "grpc", unreachable)
    return convert.timed_out(url, timeout) if isinstance(error, Timeout) else error


def _metadata(response: Any) -> dict[str, Any]:
    """The same dictionary that HTTP answers."""
    return {
        "name": response.name,
        "versions": list(response.versions),
        "platform": response.platform,
        "inputs": [_tensor(tensor) for tensor in response.inputs],
        "outputs": [_tensor(tensor) for tensor in response.outputs],
    }


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
