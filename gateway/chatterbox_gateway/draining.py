"""Graceful shutdown: new requests are refused; requests in progress finish, or are cancelled with an error."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from chatterbox_client.errors import Unavailable

SECONDS_TO_NOTICE = 5.0
"""Time for cancelled requests to send their error."""

_MESSAGE = "the server is shutting down"


class Drain:
    """Tracks the requests in progress. Belongs to one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining = False
        self.over = False
        """True once the grace period is over: later cancellations come from the shutdown, not from the client."""

    @web.middleware
    async def admit(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Raises Unavailable for a request that arrives after the shutdown began, or outlasts the grace period."""
        if self._draining:
            raise Unavailable(_MESSAGE)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await handler(request)
        except asyncio.CancelledError:
            if not self.over:
                raise
            raise cut_off() from None
        finally:
            self._tasks.discard(task)

    async def run(self, seconds: float, hurry: asyncio.Event) -> None:
        """Refuses new requests and waits until those in progress finish, `seconds` pass or `hurry` is set; then cancels
        the rest."""
        self._draining = True
        hurried = asyncio.ensure_future(hurry.wait())
        limit = asyncio.get_running_loop().time() + seconds
        while self._tasks and not hurry.is_set() and (left := limit - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait({hurried, *self._tasks}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        self.over = True
        if cut := set(self._tasks):
            for task in cut:
                task.cancel()
            await asyncio.wait(cut, timeout=SECONDS_TO_NOTICE)


def cut_off() -> Unavailable:
    """The error of a request that is cancelled by the shutdown."""
    return Unavailable(f"{_MESSAGE}: the request did not finish in the time that was left for it")


async def serve(
    application: web.Application, drain: Drain, *, host: str, port: int, grace_seconds: float, **options: Any
) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends the grace period.

    options: of aiohttp's runner. Raises OSError if the address cannot be bound.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    runner = web.AppRunner(application, shutdown_timeout=SECONDS_TO_NOTICE, **options)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
        print(f"Running on {site.name} (Ctrl-C ends it)", flush=True)
        await stop.wait()
        await drain.run(grace_seconds, hurry)
    finally:
        await runner.cleanup()
