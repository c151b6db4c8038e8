"""Checks cancelled requests in a server's metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from chatterbox_engine.launcher.server import TritonServer
from loadtest.pages import Pages
from tests.server.pages import page_when

CANCELLATIONS = "chatterbox_cancellations_total"
LONG = "This is one more sentence of a text that is too long for one segment, is it not? " * 6


@contextlib.contextmanager
def requests_cancelled(server: TritonServer, fewest: int, most: int) -> Iterator[None]:
    """Asserts that `fewest` to `most` requests are cancelled inside, and that none of them still holds a resource."""

    def settled(now: Pages) -> bool:
        held = (now.total(f"chatterbox_{name}") for name in ("requests_active", "slots_active", "kv_positions_used"))
        return fewest <= now.total(CANCELLATIONS) - before <= most and not any(held)

    before = Pages.read(server.http_url, server.metrics_url).total(CANCELLATIONS)
    yield
    page = page_when(server, settled)
    assert settled(page), [sample for sample in page.metrics if sample.name.startswith("chatterbox_")]
