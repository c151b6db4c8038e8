"""Checks cancelled requests in a server's metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from chatterbox_engine.launcher.server import TritonServer
from loadtest.pages import Pages

CANCELLATIONS = "chatterbox_cancellations_total"
LONG = "This is one more sentence of a text that is too long for one segment, is it not? " * 6


@contextlib.contextmanager
def requests_cancelled(server: TritonServer, fewest: int, most: int) -> Iterator[None]:
    """Asserts that `fewest` to `most` requests are cancelled inside, and that none of them still holds a resource."""

    def page() -> Pages:
        return Pages.read(server.http_url, server.metrics_url)

    def settled() -> bool:
        now = page()
        held = (now.total(f"chatterbox_{name}") for name in ("requests_active", "slots_active", "kv_positions_used"))
        return fewest <= now.total(CANCELLATIONS) - before <= most and not any(held)

    before = page().total(CANCELLATIONS)
    yield
    deadline = time.monotonic() + 20
    while not settled() and time.monotonic() < deadline:
        time.sleep(0.2)  # the page changes once a second
    assert settled(), [sample for sample in page().metrics if sample.name.startswith("chatterbox_")]
