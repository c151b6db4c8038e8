"""The server's own counters, read before and after the load."""

from __future__ import annotations

import json
import re
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIMEOUT = 10.0

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    """One line of a metrics page in Prometheus's text format."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(page: str) -> list[Sample]:
    """Every sample of a page."""
    matches = (_SAMPLE.match(line) for line in page.splitlines())
    return [Sample(m["name"], dict(_LABEL.findall(m["labels"] or "")), float(m["value"])) for m in matches if m]


@dataclass(frozen=True)
class Pages:
    """What a server says of itself at one time."""

    metrics: list[Sample]
    models: dict[str, Any]
    """Triton's statistics by model name."""

    @classmethod
    def read(cls, http_address: str, metrics_address: str) -> Pages:
        """Raises OSError when the server cannot be reached."""
        stats = json.loads(_get(f"http://{http_address}/v2/models/stats"))
        return cls(
            parse(_get(f"http://{metrics_address}/metrics")), {model["name"]: model for model in stats["model_stats"]}
        )

    def total(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels."""
        return sum(s.value for s in self.metrics if s.name == name and labels.items() <= s.labels.items())

    def batches(self) -> dict[int, int]:
        """How often Triton executed a batch of each size, all models together."""
        counts: defaultdict[int, int] = defaultdict(int)
        for model in self.models.values():
            for batch in model.get("batch_stats", []):
                counts[int(batch["batch_size"])] += int(batch["compute_infer"]["count"])
        return dict(counts)

    def buckets(self, name: str) -> dict[str, float]:
        """Cumulative counts of a histogram by upper bound, summed over its labels."""
        counts: defaultdict[str, float] = defaultdict(float)
        for sample in self.metrics:
            if sample.name == f"{name}_bucket":
                counts[sample.labels["le"]] += sample.value
        return dict(counts)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        page: bytes = answer.read()
    return page.decode()
