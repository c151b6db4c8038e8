"""OpenTelemetry: a span for each request, and one below it for its call to Triton, which continues the trace.

Without an OTLP endpoint nothing is recorded, and the client's own trace is sent on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

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
    def call(self, name: str, request: RequestSpan) -> Iterator[dict[str, str]]:
        """The span of a call to Triton for a request. Yields the headers to send."""
        span = self._tracer.start_span(name, request.context, SpanKind.CLIENT)
        headers: dict[str, str] = {}
        _W3C.inject(headers, trace.set_span_in_context(span))
        try:
            yield headers
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
