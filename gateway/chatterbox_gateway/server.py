"""The HTTP server: uvicorn, which drains before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from chatterbox_gateway.app import Gateway
from chatterbox_gateway.connection import TRANSPORT
from chatterbox_gateway.draining import SECONDS_TO_NOTICE

_BACKLOG = 2_048

MAX_MESSAGE = 16 << 20
"""Maximum size of a WebSocket message in bytes."""


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, or until the process `owner` ends, then drains; a second signal ends the grace
    period."""

    def __init__(self, gateway: Gateway, *, grace_seconds: float, owner: int | None = None) -> None:
        # h11 ends a body for an HTTP/1.0 client as such a client expects; uvicorn's other parser does not
        config = uvicorn.Config(
            _with_transport(gateway.asgi),
            http="h11",
            ws="wsproto",
            ws_max_size=MAX_MESSAGE,
            ws_per_message_deflate=False,  # audio
            log_config=None,
            log_level="warning",  # its lines for sockets and starts are not this log's
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(SECONDS_TO_NOTICE),
        )
        super().__init__(config)
        _lift_file_limit()
        self._gateway = gateway
        self._grace_seconds = grace_seconds
        self._owner = owner

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replaces uvicorn's, which would end the process by the signal itself. Only a main thread gets signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        stop, hurry = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (hurry if stop.is_set() else stop).set()

        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, on_signal)
        draining = loop.create_task(self._drain(stop, hurry))
        try:
            with self._watched_owner(loop, stop):
                yield
        finally:
            draining.cancel()
            for number in signals:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def _watched_owner(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Iterator[None]:
        if self._owner is None:
            yield
            return
        try:
            ends = os.pidfd_open(self._owner)
        except ProcessLookupError:  # it has ended
            stop.set()
            yield
            return

        def ended() -> None:
            loop.remove_reader(ends)
            stop.set()

        loop.add_reader(ends, ended)
        try:
            yield
        finally:
            loop.remove_reader(ends)
            os.close(ends)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"Running on http://{shown}:{port} (Ctrl-C ends it)", flush=True)

    async def _drain(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        await stop.wait()
        await self._gateway.drain.run(self._grace_seconds, hurry)
        self.should_exit = True


def _with_transport(app: ASGIApp) -> ASGIApp:
    """Passes uvicorn's transport to the application, which resets the connections of broken responses."""

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            protocol: Any = getattr(send, "__self__", None)  # uvicorn's RequestResponseCycle or WSProtocol
            scope.setdefault("extensions", {})[TRANSPORT] = protocol.transport
        await app(scope, receive, send)

    return asgi


def _lift_file_limit() -> None:
    """Raises the limit of open files as far as it may be: each client takes one, and the usual limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is a free one. Raises OSError if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
