"""OpenTelemetry: a span for each request, one below it for its call to Triton, which continues the trace, and below
that one the parts of the engine's work.

Without an OTLP endpoint nothing is recorded, and the client's own trace is sent on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"

_W3C = TraceContextTextMapPropagator()


@dataclass(frozen=True)
class RequestSpan:
    """The span of a request, and what its children begin with."""

    span: Span
    context: Context


@dataclass(frozen=True)
class CallSpan:
    """The span of a call to Triton."""

    headers: Mapping[str, str]
    """To send with it."""
    tracer: trace.Tracer
    context: Context

    def engine(self, stats: Mapping[str, Any]) -> None:
        """Makes spans of what the engine tells of its work. It has a clock of its own: its answer comes about now."""
        arrived = time.time_ns() - _nanoseconds(stats.get("total_ms", 0.0))
        for name, (start, end) in stats.get("timeline_ms", {}).items():
            span = self.tracer.start_span(f"engine.{name}", self.context, start_time=arrived + _nanoseconds(start))
            span.end(arrived + _nanoseconds(end))


def _nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


class Tracing:
    """Makes the spans. provider: where they go; None: nowhere."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer("chatterbox_gateway")

    def begin(self, name: str, headers: Mapping[str, str]) -> RequestSpan:
        """The span of a request with these headers. The caller ends it."""
        span = self._tracer.start_span(name, _W3C.extract(dict(headers)), SpanKind.SERVER)
        return RequestSpan(span, trace.set_span_in_context(span))

    def begin_turn(self, name: str, socket: RequestSpan) -> RequestSpan:
        """The span of a turn of a socket's conversation. The caller ends it."""
        span = self._tracer.start_span(name, socket.context, SpanKind.SERVER)
        return RequestSpan(span, trace.set_span_in_context(span))

    @contextmanager
    def call(self, name: str, request: RequestSpan) -> Iterator[CallSpan]:
        """The span of a call to Triton for a request."""
        span = self._tracer.start_span(name, request.context, SpanKind.CLIENT)
        headers: dict[str, str] = {}
        context = trace.set_span_in_context(span)
        _W3C.inject(headers, context)
        try:
            yield CallSpan(headers, self._tracer, context)
        except Exception as error:
            span.set_status(Status(StatusCode.ERROR, str(error)))
            raise
        finally:
            span.end()


def from_environment() -> Tracing:
    """Sends spans to the collector of the environment (gRPC), if it names one."""
    if not os.environ.get(ENDPOINT_VARIABLE):
        return Tracing()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "chatterbox-gateway")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
