"""Models that nobody uses: unloaded after a while, which frees their GPU, and loaded again for the next request.

It goes through Triton's model-repository API over HTTP, which the launcher opens to its own gateway; elsewhere the
server needs `--open model-repository`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from chatterbox_client.errors import Unavailable
from chatterbox_gateway.server_status import ServerStatus

LOAD_SECONDS = 600.0
"""For a model to load: the weights may have to be read from a disk."""

_log = logging.getLogger("chatterbox.gateway")


class ModelControl(Protocol):
    """Loads and unloads models of one server. Both return once that is done, and raise OSError if it cannot be done."""

    async def load(self, model: str) -> None:
        """Loads a model; loads it again where it is loaded."""

    async def unload(self, model: str) -> None:
        """Unloads a model after its requests have ended."""


class TritonControl:
    """`ModelControl` by Triton's HTTP port. url: `host:port`; headers: what it asks for."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = url
        self._headers = dict(headers)

    async def load(self, model: str) -> None:
        """See `ModelControl`."""
        await asyncio.to_thread(self._post, model, "load")

    async def unload(self, model: str) -> None:
        """See `ModelControl`."""
        await asyncio.to_thread(self._post, model, "unload")

    def _post(self, model: str, what: str) -> None:
        connection = http.client.HTTPConnection(self._url, timeout=LOAD_SECONDS)
        try:
            connection.request("POST", f"/v2/repository/models/{model}/{what}", json.dumps({}), self._headers)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except http.client.HTTPException as error:
            raise OSError(f"{self._url} does not speak HTTP: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"Triton answers {answer.status}: {text}")


class IdleModels:
    """Knows whether the models are loaded, and who uses them. Belongs to one event loop."""

    def __init__(
        self,
        control: ModelControl,
        models: Sequence[str],
        seconds: float,
        *,
        loaded: Callable[[], Awaitable[bool]],
        active: Callable[[], Awaitable[float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """models: that own an engine; their streaming fronts are unloaded with them. seconds: without a request.

        loaded: whether all models are ready; active: a number that is another one when requests that did not come
        through this gateway were answered meanwhile, and infinite while one is under way.
        """
        self._control = control
        self._models = models
        self._seconds = seconds
        self._loaded = loaded
        self._active = active
        self._clock = clock
        self._using = 0
        self._last = clock()
        self._seen = 0.0  # `active` at the last look
        self._used = False  # since then
        self._changing = asyncio.Lock()
        self.asleep: bool | None = None
        """Whether the models are unloaded; None before the first request."""

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Keeps the models loaded, and loads them if they are not. Raises Unavailable if that fails."""
        self._using += 1
        self._used = True
        try:
            # not cancelled with the request that waits for it: another one waits, too
            await asyncio.shield(asyncio.ensure_future(self._wake()))
            yield
        finally:
            self._using -= 1
            self._last = self._clock()

    async def run(self) -> None:
        """Unloads the models whenever they are idle, until it is cancelled."""
        while True:
            await asyncio.sleep(max(self._last + self._seconds - self._clock(), self._seconds / 10))
            await self.look()

    async def look(self) -> None:
        """Unloads the models if nobody has used them for long enough."""
        active = await self._active()
        async with self._changing:
            others = active == math.inf or (active != self._seen and not self._used)
            self._seen, self._used = active, self._using > 0
            if others:
                self._last = self._clock()
            if self.asleep or self._using or self._clock() - self._last < self._seconds:
                return
            try:
                for model in self._models:
                    await self._control.unload(f"{model}_stream")
                    await self._control.unload(model)
            except OSError as error:
                _log.warning("idle models could not be unloaded: %s", error)
                self._last, self.asleep = self._clock(), None
                return
            self.asleep = True
            _log.info("unloaded after %g s without a request: %s", self._seconds, ", ".join(self._models))

    async def _wake(self) -> None:
        async with self._changing:
            if self.asleep is None:
                self.asleep = not await self._loaded()
            if not self.asleep:
                return
            began = self._clock()
            try:
                for model in self._models:
                    await self._control.load(model)
                    await self._control.load(f"{model}_stream")
            except OSError as error:
                raise Unavailable(f"the model could not be loaded: {error}") from error
            self.asleep = False
            _log.info("loaded in %.1f s for a request: %s", self._clock() - began, ", ".join(self._models))


async def activity(server: ServerStatus, models: Sequence[str]) -> float:
    """`active` of `IdleModels`, from the metrics page."""
    readings = [await server.read(model) for model in models]
    if any(reading.number("chatterbox_requests_active") for reading in readings):
        return math.inf
    return sum(reading.number("chatterbox_requests_total") or 0.0 for reading in readings)
