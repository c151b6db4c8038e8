"""One log line for each request, and its metrics."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from opentelemetry.trace import Status, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatterbox_gateway.keys import NO_LIMITS, Caller
from chatterbox_gateway.metrics import GatewayMetrics
from chatterbox_gateway.tracing import RequestSpan, Tracing

Outcome = Literal["ok", "refused", "broken", "disconnected", "interrupted"]

_QUIET = ("/health", "/metrics", "/page/", "/swagger/", "/docs", "/openapi.json")
"""Paths without a log line: probes, and the files of the pages."""

SOCKET = "WS"
"""The method of a WebSocket in the log."""

SWITCHING_PROTOCOLS = 101
"""The status of a WebSocket that was accepted."""

_STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")

CLIENT_CLOSED_REQUEST = 499
"""The status, nginx's, of a request whose client disconnected before it got one."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LONGEST = 300
"""Maximum characters of a reason and of a voice's name."""

_log = logging.getLogger("chatterbox.gateway")


@dataclass
class Record:
    """What is known of a request, or of a turn of a socket's conversation. Filled while it is answered."""

    id: str
    method: str
    path: str
    span: RequestSpan
    started: float = field(default_factory=time.monotonic)
    caller: Caller = field(default_factory=lambda: Caller("", NO_LIMITS))
    route: str = ""
    """The path's template; empty for an unknown path."""
    model: str = ""
    voice: str = ""
    characters: int = 0
    tokens: int = 0
    """Speech tokens of 40 ms."""
    audio_seconds: float = 0.0
    """Of what the server spoke, before a change of speed."""
    ttfa: float | None = None
    """Seconds from the request's arrival to the first audio that was ready to be sent."""
    rtf: float | None = None
    """The server's real-time factor; None before the last audio."""
    status: int = 0
    """0: no response was sent."""
    outcome: Outcome = "ok"
    reason: str = ""
    seconds: float = 0.0

    def audio_is_ready(self) -> None:
        """Notes the first audio."""
        if self.ttfa is None:
            self.ttfa = time.monotonic() - self.started

    def ended(self, outcome: Outcome, reason: str) -> None:
        """Notes why a request did not get all that it asked for. The first reason counts."""
        if self.outcome == "ok":
            self.outcome, self.reason = outcome, reason

    def fields(self) -> dict[str, Any]:
        """The fields of the log line that the request has."""
        spoken = {
            "model": self.model,
            "voice": self.voice[:_LONGEST],
            "characters": self.characters,
            "audio_seconds": round(self.audio_seconds, 3),
            "ttfa": None if self.ttfa is None else round(self.ttfa, 4),
            "rtf": None if self.rtf is None else round(self.rtf, 4),
        }
        return {
            "id": self.id,
            "route": f"{self.method} {self.route or self.path[:_LONGEST]}",
            **({"key": self.caller.name} if self.caller.name else {}),
            **({name: value for name, value in spoken.items() if value is not None} if self.characters else {}),
            "status": self.status,
            "outcome": self.outcome,
            "seconds": round(self.seconds, 4),
            **({"reason": self.reason[:_LONGEST]} if self.reason else {}),
        }


class RequestLog:
    """Middleware, the outermost one: gives a request its id and record, and logs and counts it at its end."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        method = scope.get("method", SOCKET)
        record = Record(request_id(sent), method, scope["path"], self._tracing.begin(method, headers))
        scope.setdefault("state", {})["record"] = record
        if method == SOCKET:
            scope["state"]["turns"] = Turns(self, scope)

        async def note(message: Message) -> None:
            if message["type"] in _STARTS:
                record.status = message.get("status", SWITCHING_PROTOCOLS)
                message.setdefault("headers", [])
                MutableHeaders(scope=message)["X-Request-ID"] = record.id
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception:
            record.ended("broken", "the gateway failed")
            raise
        finally:
            if record.outcome == "disconnected" and not record.status:
                record.status = CLIENT_CLOSED_REQUEST
            self.end(record, scope)

    def begin_turn(self, socket: Record, number: int) -> Record:
        """The record of a turn of a socket's conversation."""
        span = self._tracing.begin_turn(socket.method, socket.span)
        return Record(f"{socket.id}-{number}", socket.method, socket.path, span, caller=socket.caller, status=200)

    def end(self, record: Record, scope: Scope) -> None:
        """Counts and logs what has ended."""
        record.route = getattr(scope.get("route"), "path", "")
        record.seconds = time.monotonic() - record.started
        if record.status >= 400:
            record.ended("refused", "")
        self._metrics.count(record)
        _end(record)
        if not record.path.startswith(_QUIET):
            _write(record)


class Turns:
    """The turns of a socket's conversation, each of which is logged and counted like a request."""

    def __init__(self, log: RequestLog, scope: Scope) -> None:
        self._log = log
        self._scope = scope
        self._begun = 0

    @contextmanager
    def turn(self) -> Iterator[Record]:
        """A turn, from its first sentence to its end."""
        self._begun += 1
        record = self._log.begin_turn(self._scope["state"]["record"], self._begun)
        try:
            yield record
        finally:
            self._log.end(record, self._scope)


def request_id(sent: str) -> str:
    """The client's request id, or a new one if it is missing, too long or has other characters than ids have."""
    return sent if _ID.fullmatch(sent) else secrets.token_hex(8)


def _end(record: Record) -> None:
    span, fields = record.span.span, record.fields()
    span.update_name(fields["route"])
    span.set_attributes({f"chatterbox.{name}": value for name, value in fields.items()})
    if record.outcome == "broken" or record.status >= 500:
        span.set_status(Status(StatusCode.ERROR, record.reason))
    span.end()


def _write(record: Record) -> None:
    bad = record.outcome == "broken" or record.status >= 500
    _log.log(logging.WARNING if bad else logging.INFO, "request", extra={"fields": record.fields()})


class TextFormatter(logging.Formatter):
    """`time level logger: message name=value ...`"""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging`."""
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        pairs = "".join(f" {name}={_text(value)}" for name, value in fields.items())
        line = f"{_time(record)} {record.levelname.lower()} {record.name}: {record.getMessage()}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging`."""
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


FORMATTERS: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def configure(log_format: str) -> None:
    """Sends the process's log lines to stderr in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[log_format]())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")


def _text(value: Any) -> str:
    text = str(value)
    return text if re.fullmatch(r"[^\s\"=\\]+", text) and text.isprintable() else json.dumps(text)
