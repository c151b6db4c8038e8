"""Which web pages may use the gateway.

A browser lets any page post forms and plain text to any address, 127.0.0.1 included, and only hides the
responses. But it sends the page's origin in a header that no page can change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chatterbox_gateway import errors
from chatterbox_gateway.errors import Refusal

READING = ("GET", "HEAD", "OPTIONS")

SPEAKING = frozenset(("/v1/audio/speech",))
"""Paths that a GET makes the server speak for, which costs it as much as a POST."""


def parse_origins(text: str) -> frozenset[str]:
    """The origins in `https://app.example.com, http://localhost:3000`. Raises ValueError for anything else."""
    origins = frozenset(entry.strip().lower() for entry in text.split(",") if entry.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}" or "@" in origin:
            raise ValueError(f"{origin!r} is not an origin: give a scheme and a host, as in https://app.example.com")
    return origins


def foreign_origin(sent: Iterable[str], host: str, allowed: frozenset[str]) -> str | None:
    """The first origin of a request that is not allowed; None if all are allowed or there is none.

    sent: values of the `Origin` header; host: that of the `Host` header. Pages from the gateway's own address are
    allowed, unless the host is a domain name: its owner can serve a page from it and then point the name at this
    machine (DNS rebinding).
    """
    return next((origin for origin in sent if origin.lower() not in allowed and not _is_own(origin, host)), None)


class OriginGuard:
    """Middleware: refuses what foreign pages send, whatever its content type, unless it only reads; and their
    sockets."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "websocket" or (
            scope["type"] == "http" and (scope["method"] not in READING or scope["path"] in SPEAKING)
        ):
            headers = Headers(scope=scope)
            foreign = foreign_origin(_origins(headers), headers.get("host", ""), self._allowed)
            if foreign is not None:
                refused = Refusal(403, f"pages of {foreign[:100]!r} may not use this server: see --cors")
                scope["state"]["record"].ended("refused", refused.message)
                await errors.response(scope["path"], refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _origins(headers: Headers) -> list[str]:
    """Those that a browser sent. It sends none with the GET of an `<audio>`, but says that a page of another site asks,
    and which one, unless that page hides it."""
    sent = headers.getlist("origin")
    if sent or headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return sent
    page = headers.get("referer", "")
    try:
        parts = urlsplit(page)
        return [f"{parts.scheme}://{parts.netloc}" if parts.netloc else "null"]
    except ValueError:
        return ["null"]


def _is_own(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin.lower())
        return parts.netloc == host.lower() and _is_address(parts.hostname or "")
    except ValueError:  # malformed; browsers do not send this
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True
