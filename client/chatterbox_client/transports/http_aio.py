"""HTTP for asyncio, through `tritonclient.http.aio`, which runs on aiohttp."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import aiohttp
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from chatterbox_client.transports import convert, sse

_DRAIN_SECONDS = 1.0

T = TypeVar("T")


class AsyncHttpTransport:
    """Keeps its connections open between calls; as many calls at once as the caller starts."""

    def __init__(self, url: str, headers: dict[str, str], *, secure: bool = False) -> None:
        self._url = url
        self._headers = headers
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
        arguments = convert.call_arguments(tritonclient.http, tensors, outputs)
        headers = {**self._headers, **context.headers}
        call = self._client.infer(model, headers=headers, request_id=context.request_id, **arguments)
        result = await self._within(timeout, call)
        return convert.answer(result, outputs)

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        """See `Transport.stream`."""
        address = f"{'https' if self._secure else 'http'}://{self._url}{sse.path(model)}"
        limit = aiohttp.ClientTimeout(total=timeout)
        headers = {**sse.HEADERS, **self._headers, **context.headers}
        events, body = sse.Events(outputs), sse.body(tensors, context.request_id)
        try:
            async with self._streams.post(address, data=body, headers=headers, timeout=limit) as response:
                if response.status != 200:
                    raise sse.refusal(response.status, await response.read())
                try:
                    async for data in response.content.iter_any():
                        for answer in events.feed(data):
                            yield answer
                finally:
                    if events.complete:  # the server ends the answer itself
                        with suppress(asyncio.TimeoutError, aiohttp.ClientError):
                            await asyncio.wait_for(response.read(), _DRAIN_SECONDS)
        except asyncio.TimeoutError as error:
            raise convert.timed_out(self._url, timeout) from error
        except (OSError, aiohttp.ClientError) as error:
            raise convert.unreachable(self._url, "http", error) from error

    async def ready(self, model: str, timeout: float | None) -> bool:
        """See `Transport.ready`."""
        return bool(await self._within(timeout, self._client.is_model_ready(model, headers=self._headers)))

    async def metadata(self, model: str, timeout: float | None) -> Mapping[str, Any]:
        """See `Transport.metadata`."""
        metadata: dict[str, Any] = await self._within(
            timeout, self._client.get_model_metadata(model, headers=self._headers)
        )
        return metadata

    async def close(self) -> None:
        """See `Transport.close`."""
        if "_client" in vars(self):
            await self._client.close()
        if "_streams" in vars(self):
            await self._streams.close()

    @cached_property
    def _client(self) -> Any:
        # Made at the first call because aiohttp wants a running loop; its own limits (100 connections, 60 s) are off.
        context = ssl.create_default_context() if self._secure else None
        return tritonclient.http.aio.InferenceServerClient(
            self._url, conn_limit=0, conn_timeout=None, ssl=self._secure, ssl_context=context
        )

    @cached_property
    def _streams(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def _within(self, timeout: float | None, call: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(call, timeout)
        except InferenceServerException as error:
            raise convert.typed(error) from error
        except asyncio.TimeoutError as error:  # another class than TimeoutError on Python 3.10
            raise convert.timed_out(self._url, timeout) from error
        except (OSError, aiohttp.ClientError) as error:
            raise convert.unreachable(self._url, "http", error) from error
