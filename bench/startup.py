"""Start-up of the engine by phases, from a new process to ready.

A phase ends with the first line that the engine reports of the next one. T3's and S3Gen's graphs (on a CPU: one step of
each) report after the first of them, so that one counts for the phase before.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.report import Report, Row, say
from bench.t3 import full_size_checkpoint
from chatterbox_engine import assemble
from chatterbox_engine.config import Config

PHASES = (
    ("checkpoint", "checkpoint "),
    ("kernels, weights", "loading T3"),
    ("T3's graphs", "T3:"),
    ("S3Gen's graphs", "S3Gen:"),
)
"""The phases after the imports, and how the first line of each begins."""


def main() -> None:
    checkpoint = full_size_checkpoint(stops=False)
    report = Report("startup")
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import chatterbox_engine.assemble"], check=True)
    imports = time.perf_counter() - began
    lines: list[tuple[float, str]] = []

    def mark(line: str) -> None:
        say(line)
        lines.append((time.perf_counter(), line))

    engine = assemble.build(Config(checkpoint=str(checkpoint.path), watermark=False), report=mark)
    engine.start()
    ready = time.perf_counter()
    engine.close()
    spent = {"imports": imports, **phases(lines, ready)}
    for name, seconds in {**spent, "all": sum(spent.values())}.items():
        report.add(name, ours=seconds, upstream=None, unit="s", more=False)
    report.write(draw)


def phases(lines: Sequence[tuple[float, str]], ready: float) -> dict[str, float]:
    """Seconds of each phase. lines: when each was reported; ready: when the engine was."""
    starts = [(name, next((at for at, line in lines if line.startswith(begin)), None)) for name, begin in PHASES]
    reached = [(name, at) for name, at in starts if at is not None]
    ends = [at for _, at in reached[1:]] + [ready]
    return {name: end - at for (name, at), end in zip(reached, ends, strict=True)}


def draw(axes: Any, rows: Sequence[Row]) -> None:
    axes.barh([row["case"] for row in rows], [row["ours"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("s")
