"""From records and pages to the figures of the report. Draws nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from loadtest.pages import Pages
from loadtest.processes import Usage, growth
from loadtest.records import Record
from loadtest.scenarios import Scenario

PERCENTILES = (50, 90, 95, 99)

SETTLING_ANSWERS = 200
"""A soak's time of settling is that of the scenario, and on a machine so busy that this is little work, this many
answers. S3Gen meets lengths of audio that it has not had, and each thread its longest."""


def summarise(
    scenario: Scenario, peak_users: int, records: Sequence[Record], began: float, before: Pages, after: Pages
) -> dict[str, Any]:
    """All figures but those of the processes. `began` is when the first stage began (time.time())."""
    whole = [record for record in records if not record.cancelled]
    good = [record for record in whole if record.error is None]
    return {
        "requests": len(records),
        "cancelled": len(records) - len(whole),
        "failed": len(whole) - len(good),
        "errors": _errors(records),
        "audio_seconds": sum(record.audio_seconds for record in good),
        "protocols": {name: figures(part) for name, part in _by(good, lambda record: record.protocol).items()},
        "kinds": {name: figures(part) for name, part in _by(good, lambda record: record.kind).items()},
        "voices": {name: figures(part) for name, part in _by(good, lambda record: record.voice).items()},
        "stages": _stages(scenario, peak_users, good, began),
        "server": server_figures(before, after),
        "settled": settled(good, began + scenario.soak.settling_seconds) if scenario.soak else None,
    }


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """Percentiles of one group of good requests, in seconds (RTF: wall seconds per second of audio)."""
    return {
        "requests": len(records),
        "audio_seconds": sum(record.audio_seconds for record in records),
        "latency": _percentiles(record.latency for record in records),
        "ttfa": _percentiles(record.ttfa for record in records),
        "rtf": _percentiles(record.rtf for record in records if record.rtf is not None),
        "queue": _percentiles(record.queue_seconds for record in records),
    }


def server_figures(before: Pages, after: Pages) -> dict[str, Any]:
    """What the server counted between two readings."""

    def grown(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    requests = grown("nv_inference_request_success")
    executions = grown("nv_inference_exec_count")
    sizes = before.batches()
    return {
        "requests_succeeded": round(requests),
        "requests_failed": round(grown("nv_inference_request_failure")),
        "audio_seconds": grown("chatterbox_audio_seconds_total"),
        "triton_batch_mean": grown("nv_inference_count") / executions if executions else None,
        "triton_batches": {n: count - sizes.get(n, 0) for n, count in sorted(after.batches().items())},
        "triton_queue_ms_mean": grown("nv_inference_queue_duration_us") / requests / 1000 if requests else None,
        "s3gen_batches": _between(before, after, "chatterbox_s3gen_batch_size"),
        "queue_seconds": _between(before, after, "chatterbox_queue_seconds"),
    }


def disagreements(summary: dict[str, Any]) -> list[str]:
    """Where the users' counts and the server's differ; both saw all of the traffic, and no client left."""
    server = summary["server"]
    found = []
    answered = summary["requests"] - summary["failed"]
    if answered != server["requests_succeeded"]:
        found.append(f"users got {answered} answers, Triton counted {server['requests_succeeded']}")
    if abs(summary["audio_seconds"] - server["audio_seconds"]) > 1e-3 * max(1, answered):  # it adds up rounded figures
        found.append(
            f"users got {summary['audio_seconds']:.2f} s of audio, the server sent {server['audio_seconds']:.2f}"
        )
    return found


def settled(good: Sequence[Record], earliest: float) -> float | None:
    """When the server had settled, time.time(), at the earliest then; None where it never had."""
    answered = sorted(record.began + record.latency for record in good)
    return max(earliest, answered[SETTLING_ANSWERS - 1]) if len(answered) >= SETTLING_ANSWERS else None


def leaks(usages: Sequence[Usage], since: float | None, allowed: Mapping[str, tuple[float, float]]) -> list[str]:
    """Resources that grew by more than `allowed` since the server had settled."""
    grown = {} if since is None else growth(usages, since)
    if not grown:
        return [f"too short to tell a leak: fewer than {SETTLING_ANSWERS} answers, or hardly any time after them"]
    found = []
    for name, (first, last) in grown.items():
        relative, absolute = allowed[name]
        if last - first > max(first * relative, absolute):
            found.append(f"{name} grew from {first:.0f} to {last:.0f}")
    return found


def _stages(scenario: Scenario, peak_users: int, good: Sequence[Record], began: float) -> list[dict[str, Any]]:
    grouped = _by(good, lambda record: scenario.stage_at(max(0.0, record.began - began)))
    rows = []
    for index, stage in enumerate(scenario.stages):
        part = grouped.get(index, [])
        row = {"users": stage.users(peak_users), "seconds": stage.seconds, **figures(part)}
        if part:
            # up to the stage's last answer: at its end, requests are still under way
            ended = max(record.began + record.latency for record in part)
            row["audio_per_second"] = row["audio_seconds"] / max(ended - min(r.began for r in part), 1e-9)
        rows.append(row)
    return rows


def _by(records: Sequence[Record], key: Any) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _percentiles(values: Iterable[float]) -> dict[str, float] | None:
    array = np.fromiter(values, dtype=float)
    if not len(array):
        return None
    return {f"p{p}": float(np.percentile(array, p)) for p in PERCENTILES} | {"max": float(array.max())}


def _errors(records: Sequence[Record]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        if record.error is not None:
            counts[record.error] = counts.get(record.error, 0) + 1
    return counts


def _between(before: Pages, after: Pages, histogram: str) -> dict[str, float]:
    """Observations per bucket (not cumulative), by upper bound."""
    old, new = before.buckets(histogram), after.buckets(histogram)
    counts: dict[str, float] = {}
    below = 0.0
    for bound in sorted(new, key=float):
        cumulative = new[bound] - old.get(bound, 0.0)
        counts[bound] = cumulative - below
        below = cumulative
    return counts
