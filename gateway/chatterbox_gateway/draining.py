"""How the front ends: it takes no more requests, and those under way finish or are told that it ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from chatterbox_client.errors import Unavailable

SECONDS_TO_NOTICE = 5.0
"""That those who are cut off have to be told so."""

_MESSAGE = "the server is shutting down"


class Drain:
    """The requests under way; belongs to one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining = False
        self.over = False
        """Whoever is cancelled from now on is cut off by the front, not by its client."""

    @web.middleware
    async def admit(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Raises Unavailable for requests that come too late, and for those that take too long."""
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
        """Takes no more requests, and gives those under way this long to finish, or until `hurry`."""
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
    """What those are told who are cut off."""
    return Unavailable(f"{_MESSAGE}: the request did not finish in the time that was left for it")


async def serve(
    application: web.Application, drain: Drain, *, host: str, port: int, grace_seconds: float, **options: Any
) -> None:
    """Runs until SIGTERM or SIGINT, and then until nothing is under way; a second signal does not wait.

    options: of aiohttp's runner. Raises OSError when the port cannot be had.
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
