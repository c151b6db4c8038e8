"""Which web pages may use the front.

A browser lets any page post forms and plain text to any address, 127.0.0.1 among them, and only hides the answers.
But it names the page's origin in a header that no page can change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit


def parse_origins(text: str) -> frozenset[str]:
    """The origins in `https://app.example.com, http://localhost:3000`. Raises ValueError for what is none."""
    origins = frozenset(entry.strip().lower() for entry in text.split(",") if entry.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}" or "@" in origin:
            raise ValueError(f"{origin!r} is no origin: give a scheme and a host, as in https://app.example.com")
    return origins


def foreign_origin(sent: Iterable[str], host: str, allowed: frozenset[str]) -> str | None:
    """The first of the origins that a request states which may not use the front; None when all may, or none is stated.

    host: what the request calls the front. A page that the browser had from there is no stranger, unless the host is a
    name: whoever owns a name can have a page loaded from it and then point it at this machine (DNS rebinding).
    """
    return next((origin for origin in sent if origin.lower() not in allowed and not _is_own(origin, host)), None)


def _is_own(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin.lower())
        return parts.netloc == host.lower() and _is_address(parts.hostname or "")
    except ValueError:  # what the page's browser would not send
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True
