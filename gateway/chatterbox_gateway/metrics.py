"""The gateway's own metrics page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from chatterbox_gateway.logs import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
"""The server's buckets, so that both can be compared."""


class GatewayMetrics:
    """Counts requests per route and key. `route` is a path's template, or `other`: a bounded number of values."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "chatterbox_gateway_requests",
            "Requests by how they ended: ok, refused, broken (a response that was cut), disconnected (by the client), "
            "interrupted (a turn of a conversation)",
            ["route", "key", "status", "outcome"],
            registry=registry,
        )
        self._speaking = Gauge("chatterbox_gateway_speaking", "Requests to speak that are under way", registry=registry)
        self._characters = Counter(
            "chatterbox_gateway_characters", "Characters of the texts to speak", ["route", "key"], registry=registry
        )
        self._audio = Counter(
            "chatterbox_gateway_audio_seconds", "Seconds of audio spoken", ["route", "key"], registry=registry
        )
        self._ttfa = Histogram(
            "chatterbox_gateway_ttfa_seconds",
            "From a request's arrival to its first audio",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._seconds = Histogram(
            "chatterbox_gateway_request_seconds",
            "From a request's arrival to the end of its response",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.under_way = self.spoken = 0
        """Requests to speak, under way and ended."""
        self.audio_seconds = 0.0

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """A request to speak, while it is under way."""
        self.under_way += 1
        try:
            with self._speaking.track_inprogress():
                yield
        finally:
            self.under_way -= 1

    def count(self, record: Record) -> None:
        """A request that has ended."""
        route, key = record.route or "other", record.caller.name
        self._requests.labels(route, key, record.status, record.outcome).inc()
        self._seconds.labels(route).observe(record.seconds)
        if record.characters:
            self.spoken += 1
            self.audio_seconds += record.audio_seconds
            self._characters.labels(route, key).inc(record.characters)
            self._audio.labels(route, key).inc(record.audio_seconds)
        if record.ttfa is not None:
            self._ttfa.labels(route).observe(record.ttfa)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
