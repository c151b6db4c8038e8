"""Which web pages may use the server.

A browser lets any page send requests to any address, 127.0.0.1 among them, and only hides the answers. But it names the
page's origin in a header that no page can change. Triton's HTTP server is told to hand that header to the models among
a request's parameters, which it does for `/infer`. Imports no torch.
"""

from __future__ import annotations

import json
import re

from chatterbox_engine.errors import ConfigError, Forbidden

HEADER = "origin"
"""In lower case; a header's name, and so the parameter's, may come in any."""

FORWARD_PATTERN = f"(?i:{HEADER})"
"""The headers that Triton is to hand on (`--http-header-forward-pattern`)."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
_SHOWN = 100


def parse_origins(text: str) -> frozenset[str]:
    """The origins in a setting: `https://app.example.com, http://localhost:3000`. Raises ConfigError."""
    origins = frozenset(entry.strip().lower() for entry in text.split(",") if entry.strip())
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"allowed_origins has {origin!r}; an origin is a scheme and a host, as in https://app.example.com"
            )
    return origins


def check_origin(parameters: str, allowed: frozenset[str]) -> None:
    """Raises Forbidden for a request that was sent by the page of an origin that is not `allowed`.

    parameters: the request's, as JSON. Triton writes a parameter of the request's body and a header of the same name
    side by side, so every one of that name counts.
    """
    for name, value in json.loads(parameters or "{}", object_pairs_hook=list):
        if name.lower() == HEADER and str(value).strip().lower() not in allowed:
            shown = str(value)[:_SHOWN]
            raise Forbidden(f"pages of {shown!r} may not use this server: CHATTERBOX_ALLOWED_ORIGINS names who may")
