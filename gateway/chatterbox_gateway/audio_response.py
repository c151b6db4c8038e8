"""A response whose audio is sent while it is spoken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chatterbox_client.errors import ChatterboxClientError
from chatterbox_gateway import errors
from chatterbox_gateway.connection import Connection
from chatterbox_gateway.draining import cut_off
from chatterbox_gateway.errors import Refusal
from chatterbox_gateway.logs import Record

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter is nginx's


class BrokenResponse(Exception):
    """A response that has begun cannot be completed, and the ASGI server has no connection to reset."""


async def begun(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Waits for the first piece, so that an error before it is raised here and gets its status."""
    first = await anext(pieces, b"")

    async def rest() -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return rest()


class AudioResponse(Response):
    """Sends pieces as they come. One that fails resets the connection, so that part of it does not pass for all."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        content_type: str,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        error_piece: Callable[[Refusal], bytes] | None = None,
    ) -> None:
        """timeout: seconds that the client has to read a piece; error_piece: a last piece that says what failed, in
        place of the reset."""
        super().__init__(headers={**HEADERS, **(headers or {})}, media_type=content_type)
        del self.headers["content-length"]
        self._pieces = pieces
        self._timeout = timeout
        self._error_piece = error_piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """See ASGI."""
        connection: Connection = scope["state"]["connection"]
        record: Record = scope["state"]["record"]
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            failed = await self._send_pieces(connection, send)
            if failed is not None:
                record.ended("broken", failed.message)
                if self._error_piece is None:
                    await _break(connection, failed.message)
                    return
                await self._send(send, self._error_piece(failed))
            await self._send(send, b"", more=False)
        except asyncio.TimeoutError:
            reason = f"the client did not read a piece within {self._timeout:g} s"
            record.ended("broken", reason)
            await _break(connection, reason)
        except asyncio.CancelledError:  # while the end is sent
            if not connection.cut:
                raise
            record.ended("broken", cut_off().message)
            await _break(connection, cut_off().message)

    async def _send_pieces(self, connection: Connection, send: Send) -> Refusal | None:
        """Returns what ended them early."""
        try:
            async with contextlib.aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    await self._send(send, piece)
                    if connection.disconnected or connection.cut:  # `wait_for` may lose a cancellation before 3.12
                        raise asyncio.CancelledError
        except (ChatterboxClientError, Refusal) as error:
            return errors.refusal(error)
        except asyncio.CancelledError:
            if not connection.cut:
                raise
            return cut_off()
        return None

    async def _send(self, send: Send, piece: bytes, *, more: bool = True) -> None:
        await asyncio.wait_for(send({"type": "http.response.body", "body": piece, "more_body": more}), self._timeout)


async def _break(connection: Connection, reason: str) -> None:
    if not connection.reset():
        raise BrokenResponse(reason)
    await connection.closed()
