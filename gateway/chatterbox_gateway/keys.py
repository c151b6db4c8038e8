"""Who may use the gateway: named keys, and what each may ask for."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chatterbox_gateway import errors
from chatterbox_gateway.errors import Refusal

OPEN = frozenset(("/", "/health", "/docs", "/openapi.json"))
"""Paths that need no key, beside those that begin with `OPEN_FOLDERS`."""

OPEN_FOLDERS = ("/page/", "/swagger/")


@dataclass(frozen=True)
class Limits:
    """What one key may ask for; 0 is no limit."""

    requests: int = 0
    """Requests to speak at once."""
    characters: int = 0
    """Characters per minute. A pause allows them at once."""


NO_LIMITS = Limits()


class Caller:
    """The holder of a key, or everybody where there are no keys. Belongs to one event loop."""

    def __init__(
        self, name: str, limits: Limits, clock: Callable[[], float] = time.monotonic, *, batch: bool = False
    ) -> None:
        """batch: all that it asks for is of priority `batch`."""
        self.name = name
        self._batch = batch
        self._limits = limits
        self._clock = clock
        self._speaking = 0
        self._characters = float(limits.characters)  # left now
        self._refilled = clock()

    def priority(self, asked: str | None) -> str | None:
        """The priority of a request that asks for one, or for none. Raises Refusal (403) where the key has another."""
        if not self._batch:
            return asked
        if asked not in (None, "batch"):
            raise Refusal(403, "this key speaks with priority batch only")
        return "batch"

    @contextmanager
    def speaking(self, characters: int) -> Iterator[None]:
        """A request to speak, while it is under way. Raises Refusal (429) where a limit is reached."""
        if 0 < self._limits.requests <= self._speaking:
            raise _limit(f"{self._limits.requests} requests of this key are under way", 1)
        self.charge(characters)
        self._speaking += 1
        try:
            yield
        finally:
            self._speaking -= 1

    def charge(self, characters: int) -> None:
        """Takes from a bucket that is refilled steadily. A text that is longer than the bucket needs a full one.

        Raises Refusal (429) where the limit is reached.
        """
        limit = self._limits.characters
        if not limit:
            return
        now = self._clock()
        self._characters = min(limit, self._characters + (now - self._refilled) * limit / 60)
        self._refilled = now
        missing = min(characters, limit) - self._characters
        if missing > 0:
            raise _limit(f"this key has {limit} characters per minute", math.ceil(missing * 60 / limit))
        self._characters -= characters


class Keys:
    """The accepted keys. Without any, all clients are accepted."""

    def __init__(self, keys: Sequence[str], limits: Limits, batch: Collection[str] = ()) -> None:
        """keys: `NAME:KEY`, or `KEY`, which is named by its place; batch: names of those whose requests have priority
        `batch`. Raises ValueError for an empty key or name, and for a name that stands twice or that no key has."""
        self._callers: dict[bytes, Caller] = {}
        names = set[str]()
        for number, entry in enumerate(keys, 1):
            name, colon, key = entry.partition(":")
            if not colon:
                name, key = f"key{number}", entry
            if not (name and key) or name in names:
                raise ValueError("is empty" if not (name and key) else f"the name {name} stands twice")
            names.add(name)
            self._callers[key.encode()] = Caller(name, limits, batch=name in batch)
        if unknown := sorted(set(batch) - names):
            raise ValueError(f"no key has the name {unknown[0]}")
        self._everybody = Caller("", limits)

    def caller(self, headers: Headers) -> Caller | None:
        """The holder of the request's key; None if it is missing or wrong."""
        sent = sent_key(headers)
        return self.holder((sent or "").encode("latin-1", "replace"))  # as the header's bytes were decoded

    def holder(self, key: bytes) -> Caller | None:
        """The holder of a key; None if there is none."""
        if not self._callers:
            return self._everybody
        found = [caller for known, caller in self._callers.items() if hmac.compare_digest(key, known)]
        return found[0] if found else None


def sent_key(headers: Headers) -> str | None:
    """The key of a request: ElevenLabs' header, or a bearer token. None if neither is there."""
    if "xi-api-key" in headers:
        return headers["xi-api-key"]
    return bearer(headers["authorization"]) if "authorization" in headers else None


def bearer(authorization: str) -> str:
    """The token of an `Authorization` header; empty for another scheme."""
    kind, _, token = authorization.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


class KeyGuard:
    """Middleware: refuses requests without a key before their body is read.

    A socket that sends no key, as a browser's cannot, is let through with the `keys` in its state: its first message
    must have one.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        caller = self._keys.caller(headers)
        if caller is None and scope["type"] == "websocket" and sent_key(headers) is None:
            scope["state"]["keys"] = self._keys
            await self._app(scope, receive, send)
            return
        if caller is None:
            refused = Refusal(401, "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"})
            await errors.response(scope["path"], refused)(scope, receive, send)
            return
        scope["state"]["record"].caller = caller
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def _limit(message: str, seconds: int) -> Refusal:
    return Refusal(429, f"{message}: try again in {seconds} s", {"Retry-After": str(seconds)})
