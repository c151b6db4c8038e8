"""The report of a load test: report.json, report.md and its pictures in one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot: no display, no global state

from loadtest.processes import RESOURCES, Usage, growth
from loadtest.records import Record

MIB = 1 << 20
IN_BYTES = ("rss", "shared_memory")


def write(
    folder: Path,
    about: dict[str, Any],
    summary: dict[str, Any],
    records: Sequence[Record],
    timeline: Sequence[tuple[float, int]],
    usages: Sequence[Usage],
) -> Path:
    """Writes everything and returns the path of report.md. `about` says what was run, where, with which result."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **about,
        **summary,
        "processes": [usage.plain() for usage in usages],
        "records": [record.plain() for record in records],
    }
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    began = min((record.began for record in records), default=0.0)
    whole = [record for record in records if not record.cancelled]
    server = summary["server"]
    pictures: dict[str, Callable[[Any], None]] = {
        "concurrency": lambda axes: _draw_concurrency(axes, summary["stages"]),
        "ttfa": lambda axes: _draw_ttfa(axes, whole),
        "throughput": lambda axes: _draw_throughput(axes, whole, timeline, began),
        "batches": lambda axes: _draw_counts(axes, server["triton_batches"], "requests in a batch (Triton)"),
        "s3gen": lambda axes: _draw_counts(axes, server["s3gen_batches"], "utterances in a batch (S3Gen)"),
        "queue": lambda axes: _draw_counts(axes, server["queue_seconds"], "waited for a slot, up to seconds"),
    }
    if usages:
        pictures |= {
            name: partial(_draw_usage, usages=usages, settled=summary["settled"], name=name) for name in RESOURCES
        }
    for name, draw in pictures.items():
        figure = Figure(figsize=(8, 4), layout="constrained")
        draw(figure.subplots())
        figure.savefig(folder / f"{name}.png", dpi=110)
    page = folder / "report.md"
    page.write_text(_page(about, summary, usages, list(pictures)), encoding="utf-8")
    return page


def _page(about: dict[str, Any], summary: dict[str, Any], usages: Sequence[Usage], pictures: Sequence[str]) -> str:
    hidden = ("scenario", "verdict", "problems")
    counts = f"{summary['requests']} requests, {summary['cancelled']} cancelled, {summary['failed']} failed"
    total = f"{counts}, {summary['audio_seconds']:.1f} s of audio."
    lines = [f"# Load test `{about['scenario']}`: {about['verdict']}", ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if name not in hidden]
    lines += [f"- **{problem}**" for problem in about["problems"]]
    lines += ["", f"{total} Times are in seconds. RTF is wall time, with queue and network, per second of audio.", ""]
    lines += _stage_table(summary["stages"])
    lines += _group_table("protocol", summary["protocols"])
    lines += _group_table("text", summary["kinds"])
    lines += _group_table("voice", summary["voices"])
    lines += ["| the server's own count | |", "| --- | --- |"]
    counts = summary["server"].items()
    lines += [_row([name.replace("_", " "), value]) for name, value in counts if not isinstance(value, dict)]
    lines += ["", *_growth_lines(usages, summary["settled"])]
    lines += [_row(["error", "requests"]), "| --- | ---: |"] if summary["errors"] else []
    lines += [_row([error.replace("|", "/"), count]) for error, count in summary["errors"].items()]
    lines += [""] + [f"![{name}]({name}.png)\n" for name in pictures]
    return "\n".join(lines)


def _stage_table(stages: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| users | seconds | requests | latency p50 | p95 | p99 | TTFA p50 | p95 | RTF p50 | s of audio per s |"]
    lines.append("| ---: " * 10 + "|")
    for row in stages:
        cells = [row["users"], row["seconds"], row["requests"]]
        cells += [_of(row, "latency", "p50"), _of(row, "latency", "p95"), _of(row, "latency", "p99")]
        cells += [_of(row, "ttfa", "p50"), _of(row, "ttfa", "p95"), _of(row, "rtf", "p50"), row.get("audio_per_second")]
        lines.append(_row(cells))
    return [*lines, ""]


def _group_table(title: str, groups: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"| {title} | requests | latency p50 | p95 | p99 | TTFA p50 | p95 | RTF p50 | queue p50 | p95 |"]
    lines.append("| --- " + "| ---: " * 9 + "|")
    for name, row in groups.items():
        cells = [name, row["requests"], *(_of(row, "latency", p) for p in ("p50", "p95", "p99"))]
        cells += [_of(row, "ttfa", "p50"), _of(row, "ttfa", "p95"), _of(row, "rtf", "p50")]
        lines.append(_row([*cells, _of(row, "queue", "p50"), _of(row, "queue", "p95")]))
    return [*lines, ""]


def _growth_lines(usages: Sequence[Usage], settled: float | None) -> list[str]:
    found = {} if settled is None else growth(usages, settled)
    if settled is None or not found:
        return []
    title = f"server's processes from {settled - usages[0].at:.0f} s on, when it had settled"
    lines = [f"| {title} | first fifth | last fifth |", "| --- | ---: | ---: |"]
    for name, values in found.items():
        shown = [f"{value / MIB:.1f} MiB" if name in IN_BYTES else f"{value:.0f}" for value in values]
        lines.append(_row([name.replace("_", " "), *shown]))
    return [*lines, ""]


def _draw_concurrency(axes: Any, stages: Sequence[dict[str, Any]]) -> None:
    spoken = sorted((row for row in stages if row["requests"]), key=lambda row: int(row["users"]))
    users = [row["users"] for row in spoken]
    for percentile in ("p50", "p95", "p99"):
        axes.plot(users, [row["latency"][percentile] for row in spoken], "o-", label=percentile)
    axes.set(title="Latency against concurrency", xlabel="users", ylabel="seconds", ylim=(0, None))
    if spoken:
        axes.legend()


def _draw_ttfa(axes: Any, records: Sequence[Record]) -> None:
    levels = np.arange(0, 101)
    for protocol in sorted({record.protocol for record in records if record.error is None}):
        values = [record.ttfa for record in records if record.protocol == protocol and record.error is None]
        axes.plot(levels, np.percentile(values, levels), label=f"{protocol}, {len(values)} requests")
        axes.legend()
    axes.set(title="Time to first audio", xlabel="percentile", ylabel="seconds", ylim=(0, None))


def _draw_throughput(
    axes: Any, records: Sequence[Record], timeline: Sequence[tuple[float, int]], began: float, window: float = 5.0
) -> None:
    end = max((record.began + record.latency - began for record in records), default=window)
    ticks = [window * index for index in range(1, int(end / window) + 2)]
    audio = [
        sum(r.audio_seconds for r in records if tick - window < r.began + r.latency - began <= tick) / window
        for tick in ticks
    ]
    axes.plot(ticks, audio, "o-", label="seconds of audio per second")
    axes.set(title="Throughput", xlabel="seconds", ylabel="seconds of audio per second", ylim=(0, None))
    users = axes.twinx()
    users.plot([at - began for at, _ in timeline], [count for _, count in timeline], color="gray", label="users")
    users.set(ylabel="users", ylim=(0, None))


def _draw_counts(axes: Any, counts: dict[Any, float], label: str) -> None:
    axes.bar([str(key) for key in counts], list(counts.values()))
    axes.set(title=label, ylabel="count")


def _draw_usage(axes: Any, *, usages: Sequence[Usage], settled: float | None, name: str) -> None:
    scale, unit = (MIB, "MiB") if name in IN_BYTES else (1, "count")
    axes.plot([usage.at - usages[0].at for usage in usages], [getattr(usage, name) / scale for usage in usages])
    axes.set(title=f"The server's processes: {name.replace('_', ' ')}", xlabel="seconds", ylabel=unit, ylim=(0, None))
    if settled is not None:
        axes.axvline(settled - usages[0].at, color="gray", linestyle=":", label="settled")
        axes.legend(loc="lower right")


def _of(row: dict[str, Any], figure: str, percentile: str) -> float | None:
    values: dict[str, float] | None = row[figure]
    return None if values is None else values[percentile]


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_figure(cell) for cell in cells) + " |"


def _figure(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
