"""Makes the Grafana dashboard: python -m deploy.monitoring.dashboard

The panels are listed here, once; the JSON beside this file is what Grafana reads and is never edited by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "grafana" / "dashboards" / "chatterbox.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
JOB = 'job="$job"'


@dataclass(frozen=True)
class Panel:
    """One panel; `queries` are pairs of a legend and an expression."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    text: str = ""


def quantiles(metric: str, *levels: float) -> list[tuple[str, str]]:
    """Percentiles of a histogram over all servers of the job."""
    rate = f"sum by (le) (rate({metric}_bucket{{{JOB}}}[$__rate_interval]))"
    return [(f"p{level * 100:g}", f"histogram_quantile({level}, {rate})") for level in levels or (0.5, 0.9, 0.99)]


def rate(counter: str, labels: str = JOB) -> str:
    """A counter's growth per second over all servers of the job."""
    return f"sum(rate({counter}{{{labels}}}[$__rate_interval]))"


def gauge(name: str, by: str = "") -> str:
    """A gauge, added up over all servers of the job."""
    return f"sum{f' by ({by})' if by else ''}({name}{{{JOB}}})"


PANELS = (
    Panel("Speed", [("", rate("chatterbox_audio_seconds_total"))], "none", "stat", 4, 4, "Seconds of audio per second"),
    Panel("Answers per second", [("", rate("chatterbox_requests_total"))], "reqps", "stat", 4, 4),
    Panel("Time to first audio, p95", [("", "job:chatterbox_ttfa_seconds:p95_5m")], "s", "stat", 4, 4),
    Panel("Real-time factor, p50", [("", "job:chatterbox_rtf_ratio:p50_5m")], "none", "stat", 4, 4, "Lower is better"),
    Panel("Slots", [("active", gauge("chatterbox_slots_active"))], "none", "stat", 4, 4, "Utterances decoding now"),
    Panel("Errors per second", [("", rate("chatterbox_errors_total"))], "none", "stat", 4, 4),
    Panel("Time to first audio", quantiles("chatterbox_ttfa_seconds"), "s"),
    Panel("Whole requests", quantiles("chatterbox_request_seconds"), "s"),
    Panel("Real-time factor", quantiles("chatterbox_rtf_ratio"), "none", text="Wall seconds per second of audio"),
    Panel("Queue", quantiles("chatterbox_queue_seconds"), "s", text="Wait for a slot"),
    Panel(
        "Load",
        [
            ("decoding", gauge("chatterbox_slots_active")),
            ("free slots", gauge("chatterbox_slots_free")),
            ("waiting", gauge("chatterbox_utterances_waiting")),
            ("requests", gauge("chatterbox_requests_active")),
        ],
        "none",
    ),
    Panel(
        "Batch work",
        [
            ("decoding", gauge("chatterbox_slots_batch")),
            ("waiting", gauge("chatterbox_batch_utterances_waiting")),
            ("answers per minute", f"60 * {rate('chatterbox_batch_requests_total')}"),
            ("slots lost per minute", f"60 * {rate('chatterbox_preemptions_total')}"),
        ],
        "none",
        text="Requests of priority batch, which the other panels of load count too",
    ),
    Panel("KV cache", [("used", "job:chatterbox_kv_positions:utilisation")], "percentunit"),
    Panel(
        "T3: one decode step",
        [("mean", f"{rate('chatterbox_t3_step_seconds_total')} / {rate('chatterbox_t3_steps_total')}")],
        "s",
    ),
    Panel(
        "T3: utterances per step",
        [("mean", f"{rate('chatterbox_t3_step_utterances_total')} / {rate('chatterbox_t3_steps_total')}")],
        "none",
    ),
    Panel("Speech tokens per second", [("", rate("chatterbox_speech_tokens_total"))], "none"),
    Panel("S3Gen: one batch", quantiles("chatterbox_s3gen_seconds", 0.5, 0.95), "s"),
    Panel(
        "S3Gen: batch size",
        [("mean", f"{rate('chatterbox_s3gen_batch_size_sum')} / {rate('chatterbox_s3gen_batch_size_count')}")],
        "none",
    ),
    Panel(
        "Triton: requests",
        [
            ("succeeded", rate("nv_inference_request_success")),
            ("failed", rate("nv_inference_request_failure")),
            ("cancelled", rate("chatterbox_cancellations_total")),
        ],
        "reqps",
    ),
    Panel(
        "Errors by kind",
        [("{{kind}}", f"sum by (kind) (rate(chatterbox_errors_total{{{JOB}}}[$__rate_interval]))")],
        "none",
    ),
    Panel(
        "Guard",
        [
            ("segments spoken again per minute", f"60 * {rate('chatterbox_retries_total')}"),
            ("seconds cut per minute", f"60 * {rate('chatterbox_trimmed_seconds_total')}"),
        ],
        "none",
    ),
    Panel("Memory", [("{{kind}}", gauge("chatterbox_memory_bytes", "kind"))], "bytes"),
    Panel(
        "Segments per answer",
        [("mean", f"{rate('chatterbox_segments_total')} / {rate('chatterbox_requests_total')}")],
        "none",
    ),
    Panel("Voices in memory", [("", gauge("chatterbox_voices_cached"))], "none"),
    Panel(
        "Voices by source",
        [("{{source}}", f"sum by (source) (rate(chatterbox_voices_total{{{JOB}}}[$__rate_interval]))")],
        "none",
        text="Encoded: computed from their clips, which takes a second or so each",
    ),
    Panel("What is served", [("", f"chatterbox_info{{{JOB}}}")], "none", "table", 24, 5, "Active optimisations"),
)


def dashboard() -> dict[str, Any]:
    """The whole document, as Grafana imports it."""
    return {
        "uid": "chatterbox",
        "title": "Chatterbox",
        "tags": ["chatterbox", "triton"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_source_variable(), _job_variable()]},
        "panels": _placed(PANELS),
    }


def _placed(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Left to right, and a new row where the next panel does not fit."""
    placed = []
    x = y = row_height = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        placed.append(_panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height}))
        x, row_height = x + panel.width, max(row_height, panel.height)
    return placed


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    table = panel.kind == "table"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "gridPos": place,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
                "instant": table,
                "range": not table,
                "format": "table" if table else "time_series",
            }
            for index, (legend, expression) in enumerate(panel.queries)
        ],
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "label": "Prometheus", "query": "prometheus", "hide": 0}


def _job_variable() -> dict[str, Any]:
    return {
        "name": "job",
        "type": "query",
        "label": "Job",
        "datasource": SOURCE,
        "query": "label_values(chatterbox_requests_total, job)",
        "refresh": 2,
        "hide": 0,
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(text(), encoding="utf-8")
