"""A visit to a GPU: stages that end, fail and take too long, and what is kept of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from bench import prepare, report, visit
from bench.startup import phases
from bench.ttfa import Heard, Listener
from bench.visit import Ended, Stage, run
from chatterbox_engine.checkpoint.families import ENGLISH, FLASH
from chatterbox_engine.checkpoint.random_checkpoint import tiny_dims
from chatterbox_engine.t3 import prompts
from chatterbox_engine.types import SAMPLE_RATE, SynthesisChunk

MEASURES = """
import json, os, pathlib, subprocess, sys, time
out = pathlib.Path(os.environ["BENCH_OUT"])
(out / "slow.json").write_text(json.dumps({"rows": [{"case": "1 utterances", "ours": 3}]}))
(out / "slow.md").write_text("| case | ours |")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(out / "child").write_text(str(child.pid))
print("measured", flush=True)
time.sleep(60)
"""

IMPORTED_LATER = (
    *("chatterbox.tts", "chatterbox.tts_turbo", "chatterbox_flash.tts", "chatterbox_engine.voices.reference"),
    *("torchao.quantization", "torchao.float8.inference", "xdist", "pytest_timeout"),
)
"""What functions of the stages import."""


def stages(*given: tuple[str, str, float]) -> list[Stage]:
    return [Stage(name, ("-c", program), limit) for name, program, limit in given]


def alive(process: int) -> bool:
    """Whether it runs; one that has ended may still wait for its parent to ask."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_stage_over_its_limit_is_ended_with_its_processes_and_what_it_measured_is_kept(tmp_path: Path) -> None:
    environment = {**os.environ, "BENCH_OUT": str(tmp_path)}
    chosen = stages(("slow", MEASURES, 3.0), ("broken", "raise SystemExit('no such GPU')", 30.0), ("fine", "", 30.0))
    ended = run(chosen, tmp_path, seconds=100.0, environment=environment)
    assert [(each.stage, each.how) for each in ended] == [
        ("slow", "over its limit"),
        ("broken", "failed (1)"),
        ("fine", "done"),
    ]
    assert not alive(int((tmp_path / "child").read_text()))
    summary = json.loads((tmp_path / "visit.json").read_text())
    assert summary["results"]["slow"]["rows"] == [{"case": "1 utterances", "ours": 3}]
    assert [stage["how"] for stage in summary["stages"]] == [each.how for each in ended]
    page = (tmp_path / "visit.md").read_text()
    assert "| slow | over its limit | 3 | 3 |" in page
    assert "## slow\n\n| case | ours |" in page
    assert "no such GPU" in page


def test_what_no_time_is_left_for_is_told_and_not_begun(tmp_path: Path) -> None:
    chosen = stages(("first", "", 30.0), ("second", "open('begun', 'w')", 30.0))
    first, second = run(chosen[:1], tmp_path, seconds=30.0, environment=dict(os.environ)) + run(
        chosen[1:], tmp_path, seconds=1.0, environment=dict(os.environ)
    )
    assert (first.how, second) == ("done", Ended("second", "no time left", 0.0, 30.0))
    assert not Path("begun").exists()


def test_a_benchmark_of_another_version_is_left_out(tmp_path: Path) -> None:
    (ended,) = run([visit.bench("no_such", 30.0)], tmp_path, seconds=30.0, environment=dict(os.environ))
    assert ended.how == "not in this version"


def test_a_visit_takes_no_more_than_ten_minutes_and_runs_benchmarks_that_exist() -> None:
    assert visit.SECONDS <= 600
    assert all(0 < stage.limit <= 120 for stage in visit.STAGES)
    names = {stage.benchmark for stage in visit.STAGES if stage.benchmark}
    assert all(Path(visit.__file__).with_name(f"{name}.py").is_file() for name in names)


def test_prepared_kernels_and_packages_are_used_where_they_are(tmp_path: Path) -> None:
    bare = visit.environment_of(tmp_path, "full")
    assert "TRITON_CACHE_DIR" not in bare
    for name in ("triton", "packages"):
        (tmp_path / name).mkdir()
    prepared = visit.environment_of(tmp_path, "tiny")
    assert prepared["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    assert prepared["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path / "packages")
    assert prepared["BENCH_SIZE"] == "tiny"


def test_a_start_is_divided_at_the_first_line_of_each_phase() -> None:
    lines = [(1.0, "checkpoint x: locating"), (1.5, "it is Chatterbox"), (3.0, "loading T3 on cuda")]
    lines += [(7.0, "T3: CUDA graph 1 of 30"), (9.0, "T3: CUDA graph 2 of 30"), (10.0, "S3Gen: CUDA graphs 1 of 9")]
    expected = {"checkpoint": 2.0, "kernels, weights": 4.0, "T3's graphs": 3.0, "S3Gen's graphs": 2.0}
    assert phases(lines, 12.0) == pytest.approx(expected)
    assert list(phases(lines[:3], 4.0)) == ["checkpoint", "kernels, weights"]


def test_a_listener_notes_the_first_audio_and_chunks_that_come_late() -> None:
    heard, listener = Heard(), Listener(opened=10.0)
    second, tokens = np.zeros(SAMPLE_RATE, np.float32), np.zeros(25, np.int32)
    for index, now in enumerate((10.2, 11.0, 12.7)):  # the second in time, the third 0.5 s late
        listener.note(now, SynthesisChunk(index, second, tokens, None), heard)
    assert heard.first == [pytest.approx(0.2)]
    assert heard.gaps == [pytest.approx(0.5)]
    assert heard.audio == 3.0


def test_what_a_benchmark_has_measured_is_written_after_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path)
    unfinished = report.Report("engine", notes={"dtype": "float32"})
    unfinished.add("1 utterances", ours=2.0, upstream=1.0, unit="audio s/s")
    kept = json.loads((tmp_path / "engine.json").read_text())
    assert (kept["dtype"], [row["ratio"] for row in kept["rows"]]) == ("float32", [2.0])
    assert "| 1 utterances | 2 | 1 | 2 | audio s/s |" in (tmp_path / "engine.md").read_text()


def test_kernels_are_found_and_compiled_for_a_gpu_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(prompts, "PREFILL_LENGTHS", prompts.PREFILL_LENGTHS[:1])  # the others launch the same
    found = prepare.launches([ENGLISH, FLASH], tiny_dims, torch.bfloat16)
    names = {kernel.fn.__name__ for kernel, _, _ in found}
    assert {"_sum_kernel", "_project_kernel", "_decode_kernel", "_norm_kernel", "_snake_kernel"} < names
    assert {"_attend_blocks_kernel", "_scores_kernel", "_reading_kernel"} < names
    assert len({repr((kernel.fn.__name__, *rest)) for kernel, *rest in found}) == len(found)
    with prepare.naming(90):
        prepare.compile_all([next(it for it in found if it[0].fn.__name__ == "_decode_kernel")])
    kept = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".cubin", ".json"} <= kept


def with_requirements(names: Iterable[str]) -> set[str]:
    """Packages and all that they need."""
    found, left = set[str](), list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            needed = [Requirement(line) for line in metadata.requires(name) or ()]
            left += [it.name for it in needed if it.marker is None or it.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.full
def test_what_the_stages_import_is_on_a_machine_with_a_gpu_or_prepared() -> None:
    stages = [f"bench.{stage.benchmark}" for stage in visit.STAGES if stage.benchmark]
    modules = [*stages, "tests.conftest", "tests.gpu.test_cuda", *IMPORTED_LATER]
    ours = [f"chatterbox-{name}" for name in ("engine", "client", "gateway", "batch")]
    packages = [*with_requirements(prepare.PRESENT), *prepare.LACKING, *ours]
    command = [sys.executable, "-m", "tests.unit.visited", ",".join(modules), ",".join(packages)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-600:]


def test_wheels_have_the_locked_versions() -> None:
    lock = "torch==2.11.0 \\\n    --hash=sha256:0\nSoundFile==0.13.1 ; python_version > '3'\nsoxr==1.0.0\n"
    assert prepare.pinned(("soxr", "SoundFile", "absent"), lock) == ["soxr==1.0.0", "SoundFile==0.13.1"]
    locked = prepare.LOCK.read_text(encoding="utf-8")
    assert len(prepare.pinned(prepare.LACKING, locked)) == len(prepare.LACKING)
