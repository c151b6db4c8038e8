"""What every benchmark writes: out/bench/<name>.json, a Markdown table and a picture beside it.

`BENCH_OUT` is another folder. The first two are written after every row, so that a run that is cut off leaves what it
has measured.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

OUT = Path(os.environ.get("BENCH_OUT", "out/bench"))

Row = dict[str, Any]
"""`case`, `ours`, `upstream`, `ratio` (above 1 where ours is better), `unit`, and further columns."""


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def say(line: str) -> None:
    """Progress, at once."""
    print(line, file=sys.stderr, flush=True)


def machine() -> str:
    """The processor and, where there is one, the GPU."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    text = f"{model}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name()}, {text}" if torch.cuda.is_available() else text


def synchronize() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], *, repeat: int = 5, warm_up: int = 1) -> float:
    """Median wall time of a call."""
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(repeat):
        synchronize()
        began = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@dataclass
class Report:
    """The rows of one benchmark."""

    name: str
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def add(
        self, case: str, *, ours: float, upstream: float | None, unit: str, more: bool = True, **columns: Any
    ) -> None:
        """One comparison; `more` tells whether a larger figure is the better one."""
        ratio = None if upstream is None else (ours / upstream if more else upstream / ours)
        row = {"case": case, "ours": ours, "upstream": upstream, "ratio": ratio, "unit": unit, **columns}
        self.rows.append(row)
        say(f"{self.name}: " + ", ".join(f"{key} {_figure(value)}" for key, value in row.items() if value is not None))
        self._save()

    def write(self, draw: Callable[[Any, Sequence[Row]], None]) -> Path:
        """Writes the three files; `draw(axes, rows)` makes the picture. Returns the JSON's path."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot

        path = self._save()
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        draw(axes, self.rows)
        axes.set_title(f"{self.name}: {machine()}", fontsize="small", wrap=True)
        figure.savefig(path.with_suffix(".png"), dpi=120)
        pyplot.close(figure)
        say(f"{self.name}: wrote {path}, and .md and .png beside it")
        return path

    def _save(self) -> Path:
        """Writes the JSON, whose path it returns, and the table."""
        OUT.mkdir(parents=True, exist_ok=True)
        about = {
            "name": self.name,
            "machine": machine(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        }
        path = OUT / f"{self.name}.json"
        path.write_text(json.dumps({**about, **self.notes, "rows": self.rows}, indent=2) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(self._markdown(about), encoding="utf-8")
        return path

    def _markdown(self, about: dict[str, Any]) -> str:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [f"`{about['command']}` on {about['machine']}, {about['date']}", ""]
        lines += ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
        lines += ["| " + " | ".join(_figure(row.get(key)) for key in columns) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


def _figure(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
