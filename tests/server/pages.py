"""A server's metrics page once it shows what a test waits for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from chatterbox_engine.launcher.server import TritonServer
from chatterbox_engine.metrics import PUBLISH_SECONDS
from loadtest.pages import Pages

EVERY = 0.2
"""Seconds between two looks."""


def page_when(server: TritonServer, condition: Callable[[Pages], bool], *, seconds: float = 20.0) -> Pages:
    """The first page that meets a condition, or the last one when none does in time.

    The server publishes its figures once a second, and nothing but the page tells when, so it is read again and again.
    """
    deadline = time.monotonic() + seconds
    while not condition(page := Pages.read(server.http_url, server.metrics_url)) and time.monotonic() < deadline:
        time.sleep(EVERY)
    return page


def settled_page(server: TritonServer) -> Pages:
    """The page once it counts all requests answered so far: it has stayed the same for longer than PUBLISH_SECONDS."""
    looks = math.ceil(1.5 * PUBLISH_SECONDS / EVERY)
    totals: list[float] = []

    def stays(page: Pages) -> bool:
        totals.append(page.total("chatterbox_requests_total"))
        return len(totals) > looks and len(set(totals[-looks - 1 :])) == 1

    page = page_when(server, stays)
    assert len(set(totals[-looks:])) == 1, totals
    return page
