"""Requests and sockets that end early: cancelled by their clients, or by a shutdown that waits for them no longer."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from chatterbox_gateway import errors
from chatterbox_gateway.connection import Connection
from chatterbox_gateway.errors import Refusal

SECONDS_TO_NOTICE = 5.0
"""Time for cancelled requests to send their error."""

_MESSAGE = "the server is shutting down"


class OpenSocket:
    """What the shutdown tells the handler of a WebSocket."""

    def __init__(self) -> None:
        self.draining = False
        """Turns in progress may end, no other begins."""
        self.cut = False
        """The handler's task was cancelled by the shutdown."""
        self.wake = asyncio.Event()
        """Set when `draining` changes, and by the handler's own tasks."""

    def drain(self) -> None:
        """Begins the shutdown."""
        self.draining = True
        self.wake.set()


class Drain:
    """Middleware that tracks the requests in progress. Belongs to one event loop.

    A client that disconnects cancels its request. `run` ends them all: new ones are refused, so that readiness goes
    first, and those in progress finish or are cancelled with an error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._requests: dict[asyncio.Task[Any], Connection | OpenSocket] = {}
        self._draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan" or scope["path"] == "/metrics":
            await self._app(scope, receive, send)
            return
        if self._draining:
            refused = Refusal(503, _MESSAGE, {"Retry-After": "1", "Connection": "close"})
            scope["state"]["record"].ended("refused", _MESSAGE)
            await errors.response(scope["path"], refused)(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
        else:
            await self._serve(scope, Connection(scope, receive, send))

    async def run(self, seconds: float, hurry: asyncio.Event) -> None:
        """Refuses new requests and waits until those in progress finish, `seconds` pass or `hurry` is set; then cancels
        the rest."""
        self._draining = True
        for request in self._requests.values():
            if isinstance(request, OpenSocket):
                request.drain()
        hurried = asyncio.ensure_future(hurry.wait())
        limit = asyncio.get_running_loop().time() + seconds
        while self._requests and not hurry.is_set() and (left := limit - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait({hurried, *self._requests}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if self._requests:
            for task, connection in self._requests.items():
                connection.cut = True
                task.cancel()
            await asyncio.wait(set(self._requests), timeout=SECONDS_TO_NOTICE)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._requests[task] = scope["state"]["socket"] = OpenSocket()
        try:
            await self._app(scope, receive, send)
        finally:
            del self._requests[task]

    async def _serve(self, scope: Scope, connection: Connection) -> None:
        scope["state"]["connection"] = connection
        record = scope["state"]["record"]
        task = asyncio.current_task()
        assert task is not None
        self._requests[task] = connection
        watching = asyncio.ensure_future(connection.watch(task))
        try:
            await self._app(scope, connection.receive, connection.send)
        except asyncio.CancelledError:
            if connection.disconnected:
                record.ended("disconnected", "the client disconnected")
            elif connection.cut and not connection.started:
                refused = cut_off()
                record.ended("refused", refused.message)
                await errors.response(scope["path"], refused)(scope, connection.receive, connection.send)
            else:
                raise
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            del self._requests[task]


def cut_off() -> Refusal:
    """The error of a request that is cancelled by the shutdown."""
    return Refusal(503, f"{_MESSAGE}: the request did not finish in the time that was left for it")
