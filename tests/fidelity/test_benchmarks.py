"""Benchmarks of whole engines beside upstream, with small networks: that they run, not how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
@pytest.mark.parametrize("name", ["engine", "meanflow", "turbo", "nano", "flash"])
def test_a_benchmark_of_a_family_runs_and_writes_its_figures(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"BENCH_SIZE": "tiny", "BENCH_OUT": str(tmp_path)}
    command = [sys.executable, "-m", "bench", name]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert len(rows) > 1
    assert all(row["ratio"] > 0 for row in rows)
