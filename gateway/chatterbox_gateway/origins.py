"""Which web pages may use the gateway.

A browser lets any page post forms and plain text to any address, 127.0.0.1 included, and only hides the
responses. But it sends the page's origin in a header that no page can change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit


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
