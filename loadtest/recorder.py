"""Collects the records of all users, including those on Locust's workers, and reports progress."""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import events
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner

from loadtest.records import Record

PROGRESS_SECONDS = 5
LAST_RECORDS = "last_records"
"""The message with which a worker sends its unreported records."""

_records: list[dict[str, Any]] = []
_timeline: list[tuple[float, int]] = []


def add(environment: Environment, record: Record) -> None:
    """Keeps a record, and tells Locust three figures: latency, time to first audio, and milliseconds per second of
    audio (the real-time factor times 1000, because Locust's statistics are made for milliseconds)."""
    _records.append(record.plain())
    error = RuntimeError(record.error) if record.error else None
    _fire(environment, record.protocol, record.kind, record.latency, record.audio_seconds, error)
    if record.rtf is not None:
        _fire(environment, f"{record.protocol} TTFA", record.kind, record.ttfa)
        _fire(environment, f"{record.protocol} RTF x 1000", record.kind, record.rtf)


def _fire(
    environment: Environment, metric: str, kind: str, seconds: float, audio: float = 0.0, error: Exception | None = None
) -> None:
    environment.events.request.fire(
        request_type=metric,
        name=kind,
        response_time=seconds * 1000,
        response_length=round(audio * 24_000) * 4,
        exception=error,
        context={},
    )


@events.report_to_master.add_listener
def _report(data: dict[str, Any], **_: Any) -> None:
    data["records"] = _take()


@events.worker_report.add_listener
def _receive(data: dict[str, Any], **_: Any) -> None:
    _records.extend(data["records"])


@events.test_stop.add_listener
def _send_the_last(environment: Environment, **_: Any) -> None:
    """A worker's users have ended. Its next regular report would be too late: once a worker reports that it has
    stopped, the master no longer waits for its reports."""
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message(LAST_RECORDS, {"records": _take()})


def _receive_the_last(msg: Message, **_: Any) -> None:
    _receive(msg.data)


def _take() -> list[dict[str, Any]]:
    taken = list(_records)
    _records.clear()
    return taken


@events.test_start.add_listener
def _watch(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(_follow, environment)


def _follow(environment: Environment) -> None:
    began = time.time()
    while environment.runner is not None:
        users = environment.runner.user_count
        _timeline.append((time.time(), users))
        if len(_timeline) % PROGRESS_SECONDS == 0:
            _say(time.time() - began, users)
        gevent.sleep(1)


def _say(seconds: float, users: int) -> None:
    failed = sum(record["error"] is not None for record in _records)
    recent = [record for record in _records if record["began"] + record["latency"] > time.time() - PROGRESS_SECONDS]
    audio = sum(record["audio_seconds"] for record in recent) / PROGRESS_SECONDS
    p50 = f"{statistics.median(record['latency'] for record in recent):.2f} s" if recent else "none"
    print(
        f"loadtest: {seconds:4.0f} s, {users:3} users, {len(_records):5} answers, {failed} failed, "
        f"{audio:6.1f} x real time, latency p50 {p50}",
        file=sys.stderr,
        flush=True,
    )


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(LAST_RECORDS, _receive_the_last)
    options = environment.parsed_options
    if options is not None and options.records and not isinstance(environment.runner, WorkerRunner):
        events.quit.add_listener(partial(_write, Path(options.records)))


def _write(path: Path, **_: Any) -> None:
    path.write_text(json.dumps({"records": _records, "timeline": _timeline}), encoding="utf-8")
