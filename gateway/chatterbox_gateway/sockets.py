"""WebSockets whose messages are JSON objects."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from chatterbox_gateway.connection import TRANSPORT
from chatterbox_gateway.draining import OpenSocket
from chatterbox_gateway.keys import Keys, bearer
from chatterbox_gateway.logs import Record, Turns

NORMAL, GOING_AWAY, POLICY_VIOLATION, INTERNAL_ERROR, SERVICE_RESTART = 1000, 1001, 1008, 1011, 1012
"""Codes of a close."""

SECONDS_FOR_KEY = 10.0
"""In which the first message must come where the handshake had no key."""

MOST_CHARACTERS = 40_000
"""That may wait to be spoken: of a context of ElevenLabs' sockets, or of all texts of another one."""


class Gone(Exception):
    """The client disconnected, or does not read."""


class Silent(Exception):
    """No message came in time."""


class NotJson(Exception):
    """A message is not a JSON object."""


class Socket:
    """A WebSocket.

    async with Socket(websocket, 300) as socket:
        while (message := await socket.receive(20)) is not None:
            await socket.send(message)
    """

    def __init__(self, websocket: WebSocket, timeout: float) -> None:
        """timeout: seconds that the client has to read a message."""
        self._websocket = websocket
        self._timeout = timeout
        self._open: OpenSocket = websocket.scope["state"]["socket"]
        self._keys: Keys | None = websocket.scope["state"].get("keys")
        self._receiving: asyncio.Task[Any] | None = None
        self.record: Record = websocket.scope["state"]["record"]
        self.turns: Turns = websocket.scope["state"]["turns"]

    @property
    def draining(self) -> bool:
        """Whether a shutdown has begun."""
        return self._open.draining

    @property
    def cut(self) -> bool:
        """Whether the shutdown cancelled what is under way."""
        return self._open.cut

    @property
    def needs_key(self) -> bool:
        """Whether a message has to bring the key that the handshake lacked."""
        return self._keys is not None

    def admit(self, key: str | None, authorization: str | None) -> bool:
        """Takes the key of a message; False if it is missing or wrong."""
        if self._keys is None:
            return True
        sent = key or bearer(authorization or "") or authorization or ""
        caller = self._keys.holder(sent.encode())
        if caller is None:
            return False
        self.record.caller = caller
        self._keys = None
        return True

    def wake(self) -> None:
        """Lets `receive` return."""
        self._open.wake.set()

    async def receive(self, seconds: float | None) -> dict[str, Any] | None:
        """The next message; None after `wake`. Raises Gone, NotJson, and Silent after these seconds."""
        if self._receiving is None:
            self._receiving = asyncio.ensure_future(self._websocket.receive())
        waking = asyncio.ensure_future(self._open.wake.wait())
        try:
            await asyncio.wait({self._receiving, waking}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
        if self._receiving.done():
            received, self._receiving = self._receiving.result(), None
            if received["type"] == "websocket.disconnect":
                raise Gone
            return _object(received)
        if self._open.wake.is_set():
            self._open.wake.clear()
            return None
        raise Silent

    async def send(self, message: dict[str, Any]) -> None:
        """Sends a message, unless the socket is closed. Raises Gone."""
        if self._websocket.application_state != WebSocketState.CONNECTED:
            return
        try:
            await asyncio.wait_for(self._websocket.send_text(json.dumps(message)), self._timeout)
        except WebSocketDisconnect as error:
            raise Gone from error
        except asyncio.TimeoutError as error:
            self.record.ended("broken", f"the client did not read a message within {self._timeout:g} s")
            self._websocket.scope["extensions"][TRANSPORT].abort()
            raise Gone from error

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Closes the socket, if it is open."""
        if self._websocket.application_state == WebSocketState.CONNECTED:
            try:
                await self._websocket.close(code, reason[:120])
            except WebSocketDisconnect:
                self.record.ended("disconnected", "the client disconnected")

    async def __aenter__(self) -> Socket:
        await self._websocket.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.gather(self._receiving, return_exceptions=True)


def _object(received: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of a message."""
    text = received.get("text")
    try:
        message = json.loads(received.get("bytes") or b"" if text is None else text)
    except (ValueError, RecursionError) as error:
        raise NotJson(f"the message is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise NotJson("the message is not a JSON object")
    return message
