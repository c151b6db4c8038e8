"""The gateway's log lines and metrics."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from chatterbox_client import Unavailable
from chatterbox_gateway.app import create
from chatterbox_gateway.logs import JsonFormatter, TextFormatter, request_id
from chatterbox_gateway.settings import Settings
from chatterbox_gateway.tracing import Tracing
from tests.unit.client_fakes import STATS, FakeAsyncTransport, spoken
from tests.unit.gateway_fakes import SPEECH, Breaking, call, gateway_of


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record)["fields"] for record in caplog.records if record.name == "chatterbox.gateway"]


def test_a_request_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gateway = gateway_of(FakeAsyncTransport(), keys=["anna:secret"])
    headers = {"X-Request-ID": "a-1", "Authorization": "Bearer secret"}
    answer = call(gateway, "POST", "/v1/audio/speech", json=SPEECH, headers=headers)
    assert answer.headers["X-Request-ID"] == "a-1"
    (fields,) = lines(caplog)
    assert 0 < fields.pop("ttfa") <= fields.pop("seconds")
    assert fields == {
        "id": "a-1",
        "route": "POST /v1/audio/speech",
        "key": "anna",
        "model": "chatterbox",
        "voice": "anna",
        "characters": 6,
        "audio_seconds": 0.12,
        "rtf": 0.25,
        "status": 200,
        "outcome": "ok",
    }


def test_a_refused_request_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    call(gateway_of(FakeAsyncTransport(Unavailable("the queue is full"))), "POST", "/generate", json={"text": "Hello."})
    call(gateway_of(FakeAsyncTransport()), "DELETE", "/v1/audio/voices/anna")
    call(gateway_of(FakeAsyncTransport(), keys=["secret"]), "GET", "/v1/models")
    full, unknown, stranger = lines(caplog)
    assert (full["route"], full["status"], full["outcome"]) == ("POST /generate", 503, "refused")
    assert full["reason"] == "the queue is full"
    assert unknown["status"] == 404
    assert (stranger["status"], stranger["outcome"]) == (401, "refused")


def test_a_broken_stream_is_not_logged_as_a_whole_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gateway = gateway_of(Breaking())
    call(gateway, "POST", "/v1/audio/speech", json={**SPEECH, "stream_format": "sse"})
    (fields,) = lines(caplog)
    assert (fields["status"], fields["outcome"], fields["reason"]) == (200, "broken", "the engine has ended")
    assert 'status="200"' in next(
        line for line in call(gateway, "GET", "/metrics").text.splitlines() if 'outcome="broken"' in line
    )


def test_probes_and_pages_have_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gateway = gateway_of(FakeAsyncTransport())
    for path in ("/health", "/metrics", "/docs", "/openapi.json", "/swagger/swagger-ui.css"):
        assert call(gateway, "GET", path).status_code == 200
    assert lines(caplog) == []


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "a\nb", "é", '"'])
def test_an_id_that_is_none_is_replaced(sent: str) -> None:
    assert re.fullmatch("[0-9a-f]{16}", request_id(sent))
    assert request_id(sent) != request_id(sent)


def test_formats() -> None:
    record = logging.LogRecord("chatterbox.gateway", logging.INFO, "", 0, "request", (), None)
    record.created = 0.0
    vars(record)["fields"] = {"id": "a-1", "voice": 'a "b"\nid=x', "characters": 6, "reason": "é"}
    text = TextFormatter().format(record)
    assert text == (
        "1970-01-01T00:00:00.000+00:00 info chatterbox.gateway: request id=a-1"
        ' voice="a \\"b\\"\\nid=x" characters=6 reason=é'
    )
    assert json.loads(JsonFormatter().format(record)) == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "logger": "chatterbox.gateway",
        "message": "request",
        "id": "a-1",
        "voice": 'a "b"\nid=x',
        "characters": 6,
        "reason": "é",
    }


def test_metrics_are_per_route_and_key() -> None:
    gateway = gateway_of(FakeAsyncTransport(), keys=["anna:one", "berta:two"])
    for key, count in (("one", 2), ("two", 1)):
        for _ in range(count):
            call(gateway, "POST", "/v1/audio/speech", json=SPEECH, headers={"Authorization": f"Bearer {key}"})
    headers = {"Authorization": "Bearer one"}
    for number in range(3):
        call(gateway, "GET", f"/nowhere/{number}", headers=headers)
    call(gateway, "GET", "/v1/models/piper", headers=headers)
    page = call(gateway, "GET", "/metrics", headers=headers).text
    samples = {
        (sample.name.removeprefix("chatterbox_gateway_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["requests_total", "anna", "ok", "/v1/audio/speech", "200"] == 2
    assert samples["requests_total", "berta", "ok", "/v1/audio/speech", "200"] == 1
    assert samples["requests_total", "anna", "refused", "other", "404"] == 3
    assert samples["requests_total", "anna", "refused", "/v1/models/{name}", "404"] == 1
    assert samples["characters_total", "anna", "/v1/audio/speech"] == 12
    assert samples["audio_seconds_total", "anna", "/v1/audio/speech"] == pytest.approx(0.24)
    assert samples["ttfa_seconds_count", "/v1/audio/speech"] == 3
    assert samples["speaking",] == 0


TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1"}


@pytest.mark.parametrize("fields", [{}, {"stream": False}])
def test_the_server_gets_the_id_and_the_trace(fields: dict[str, Any]) -> None:
    transport = FakeAsyncTransport()
    headers = {**TRACE, "X-Request-ID": "a-1", "Cookie": "x=1"}
    call(gateway_of(transport), "POST", "/v1/audio/speech", json={**SPEECH, **fields}, headers=headers)
    (context,) = transport.sync.contexts
    assert (context.request_id, context.headers) == ("a-1", TRACE)


@pytest.mark.parametrize("wrong", [{"traceparent": "00-x"}, {"tracestate": "a=1"}, {"traceparent": "\u00e9"}])
def test_a_malformed_trace_is_dropped(wrong: dict[str, str]) -> None:
    transport = FakeAsyncTransport()
    headers = {name.encode(): value.encode("latin-1") for name, value in wrong.items()}
    call(gateway_of(transport), "POST", "/v1/audio/speech", json=SPEECH, headers=headers)
    (context,) = transport.sync.contexts
    assert context.headers == {}


def test_spans_go_from_the_client_to_the_server() -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    transport = FakeAsyncTransport()
    gateway = create(transport, Settings(), Tracing(provider))
    call(gateway, "POST", "/v1/audio/speech", json={**SPEECH, "voice": None}, headers=TRACE)
    below, above = exported.get_finished_spans()
    assert (above.name, below.name) == ("POST /v1/audio/speech", "chatterbox.stream")
    assert {format(span.context.trace_id, "032x") for span in (above, below)} == {TRACE["traceparent"][3:35]}
    assert format(above.parent.span_id, "016x") == TRACE["traceparent"][36:52]
    assert below.parent.span_id == above.context.span_id
    assert (above.attributes["chatterbox.status"], above.attributes["chatterbox.characters"]) == (200, 6)
    assert transport.sync.contexts[0].headers["traceparent"][36:52] == format(below.context.span_id, "016x")


def timed(timeline: dict[str, list[float]]) -> Any:
    return np.array([[json.dumps({**STATS, "total_ms": 30.0, "timeline_ms": timeline}).encode()]], dtype=np.object_)


class Timed(FakeAsyncTransport):
    """Its streams end with the statistics of its whole answer."""

    async def stream(self, *arguments: Any, **options: Any) -> AsyncGenerator[Any, None]:
        async for chunk in super().stream(*arguments, **options):
            yield {**chunk, "stats": self.sync.result["stats"]} if chunk["is_last"] else chunk


@pytest.mark.parametrize("how", ["stream", "speak"])
def test_the_engine_s_work_is_below_the_call(how: str) -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    timeline = {"queue": [0.0, 2.0], "prefill": [2.0, 5.0], "decode": [5.0, 20.0], "vocode": [9.0, 28.0]}
    transport = Timed({**spoken(), "stats": timed(timeline)})
    gateway = create(transport, Settings(), Tracing(provider))
    call(gateway, "POST", "/v1/audio/speech", json={**SPEECH, "voice": None, "stream": how == "stream"})
    *parts, triton, _ = exported.get_finished_spans()
    assert [span.name for span in parts] == [f"engine.{name}" for name in timeline]
    assert {span.parent.span_id for span in parts} == {triton.context.span_id}
    arrived = parts[0].start_time
    assert {span.name[7:]: [(span.start_time - arrived) / 1e6, (span.end_time - arrived) / 1e6] for span in parts} == (
        timeline
    )


def test_what_failed_is_an_error_of_both_spans() -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    gateway = create(FakeAsyncTransport(Unavailable("the queue is full")), Settings(), Tracing(provider))
    call(gateway, "POST", "/v1/audio/speech", json=SPEECH)
    assert [span.status.description for span in exported.get_finished_spans()] == ["the queue is full"] * 2
