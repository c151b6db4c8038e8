"""The connection under a request: its client disconnects, or its broken response is reset."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

TRANSPORT = "chatterbox.transport"
"""ASGI has no reset, so the server passes the asyncio transport under this name in the scope's extensions."""

MAX_BODY = 64 << 20
"""Maximum size of a request in bytes; it may hold a reference clip in base64."""


class Connection:
    """The ASGI channel of one request.

    ASGI servers do not cancel a request whose client disconnects. So once the body has been read, `watch` waits for
    that.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._transport = scope.get("extensions", {}).get(TRANSPORT)
        self._body_read = asyncio.Event()
        self._has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        if not self._has_body:
            self._body_read.set()
        self._empty_body_sent = False
        self._received = 0  # bytes
        self._gone = asyncio.Event()
        self.started = False
        """Whether the response has begun."""
        self.complete = False
        """Whether the whole response has been sent."""
        self.cut = False
        """Whether the shutdown cancelled the request."""

    @property
    def disconnected(self) -> bool:
        """Whether the client disconnected before the response was complete."""
        return self._gone.is_set()

    async def receive(self) -> Message:
        """ASGI's `receive` for the application."""
        if not self._body_read.is_set():
            message = await self._receive()
            self._received += len(message.get("body", b""))
            if self._received > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY >> 20} MB")
            if message["type"] == "http.disconnect":
                self._gone.set()
            if not message.get("more_body", False):
                self._body_read.set()
            return message
        if not self._has_body and not self._empty_body_sent:
            self._empty_body_sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI's `send` for the application."""
        self.started = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    async def watch(self, task: asyncio.Task[Any]) -> None:
        """Cancels the task if the client disconnects before the response is complete."""
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        if not self.complete:
            task.cancel()

    def reset(self) -> bool:
        """Resets the connection, so that truncated audio does not look complete: for an HTTP/1.0 client, such as nginx,
        a closed connection ends the body. False where there is no connection to reset."""
        if self._transport is None:
            return False
        connection = self._transport.get_extra_info("socket")
        with suppress(OSError):  # closed by the client
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        return True

    async def closed(self) -> None:
        """Waits until the server knows that the connection is gone."""
        await self._gone.wait()
