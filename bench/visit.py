"""All that is measured on a GPU, in one visit of at most ten minutes: `make gpu-visit`, or `python -m bench.visit`.

Every stage is a process with a limit of its own, and all together have `--seconds`: a stage that takes longer is ended,
and what it has measured until then is kept. Everything is in `out/visit`: per benchmark the JSON, the table and the
picture, per stage what it said, and `visit.md` and `visit.json` with all of it.

`--prepared` names the folder that `python -m bench.prepare` has filled before the visit: wheels, which are installed
into it first, and the kernels' cache. `--size tiny` takes the tests' small networks, which shows on any machine that
the visit works; a CPU gets four times the limits.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

OUT = Path("out/visit")
PREPARED = Path("out/visit-prepared")
SECONDS = 600.0
PATIENCE = {"full": 1.0, "tiny": 4.0}
"""By what the limits are multiplied."""
LEAST = 5.0
"""Seconds that a stage must have left to be started."""
FAMILIES = ("", "turbo", "nano", "flash")
"""Whose random weights are made; those of this version only."""


@dataclass(frozen=True)
class Stage:
    """A command of Python's, and the seconds after which it is ended."""

    name: str
    arguments: tuple[str, ...]
    limit: float

    @property
    def benchmark(self) -> str | None:
        """The benchmark that it runs."""
        return self.arguments[2] if self.arguments[:2] == ("-m", "bench") else None


@dataclass(frozen=True)
class Ended:
    """How a stage ended: `done`, `failed (status)`, `over its limit`, `no time left` or `not in this version`."""

    stage: str
    how: str
    seconds: float
    limit: float


def bench(name: str, limit: float) -> Stage:
    """The stage of a benchmark."""
    return Stage(name, ("-m", "bench", name), limit)


STAGES = (
    Stage("weights", ("-m", "bench.visit", "--weights"), 60),
    Stage("tests", ("-m", "pytest", "tests/gpu", "-q", "-n", "8", "-p", "no:benchmark", "-p", "no:cacheprovider"), 120),
    bench("engine", 60),
    bench("meanflow", 45),
    bench("ttfa", 45),
    bench("startup", 40),
    bench("turbo", 40),
    bench("nano", 35),
    bench("flash", 45),
    bench("t3", 40),
    bench("s3gen", 50),
    bench("quantization", 45),
    bench("memory", 45),
)
"""In the order of what a visit is for; what earlier ones leave of their limits is the last ones' chance."""


def run(stages: Sequence[Stage], out: Path, *, seconds: float, environment: dict[str, str]) -> list[Ended]:
    """Runs the stages one after the other. Writes the summary after each."""
    out.mkdir(parents=True, exist_ok=True)
    deadline, ended = time.monotonic() + seconds, list[Ended]()
    for stage in stages:
        left = min(stage.limit, deadline - time.monotonic())
        if stage.benchmark and importlib.util.find_spec(f"bench.{stage.benchmark}") is None:
            ended.append(Ended(stage.name, "not in this version", 0.0, stage.limit))
        elif left < min(LEAST, stage.limit):
            ended.append(Ended(stage.name, "no time left", 0.0, stage.limit))
        else:
            print(f"visit: {stage.name}, at most {left:.0f} s", file=sys.stderr, flush=True)
            ended.append(_run_one(stage, out / f"{stage.name}.log", left, environment))
            print(f"visit: {stage.name}: {ended[-1].how}, {ended[-1].seconds:.0f} s", file=sys.stderr, flush=True)
        summarise(ended, out)
    return ended


def _run_one(stage: Stage, log: Path, limit: float, environment: dict[str, str]) -> Ended:
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [sys.executable, *stage.arguments],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that its own processes end with it
        )
        try:
            status = process.wait(limit)
            how = "done" if status == 0 else f"failed ({status})"
        except subprocess.TimeoutExpired:
            how = "over its limit"
        finally:
            _end(process)
    return Ended(stage.name, how, time.monotonic() - began, stage.limit)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a stage's process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def summarise(ended: Sequence[Ended], out: Path) -> None:
    """Writes `visit.json` and `visit.md`: how every stage ended, and the tables of the benchmarks."""
    results = {
        path.stem: json.loads(path.read_text("utf-8")) for path in sorted(out.glob("*.json")) if _is_result(path)
    }
    summary = {"stages": [asdict(each) for each in ended], "results": results}
    (out / "visit.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    lines = ["| stage | how it ended | seconds | limit |", "| --- | --- | --- | --- |"]
    lines += [f"| {each.stage} | {each.how} | {each.seconds:.0f} | {each.limit:.0f} |" for each in ended]
    for each in ended:
        table = out / f"{each.stage}.md"
        if table.is_file():
            lines += ["", f"## {each.stage}", "", table.read_text(encoding="utf-8").rstrip()]
        elif (out / f"{each.stage}.log").is_file():
            lines += ["", f"## {each.stage}", "", "```", *_last_lines(out / f"{each.stage}.log"), "```"]
    (out / "visit.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _is_result(path: Path) -> bool:
    return path.stem != "visit"


def _last_lines(log: Path, count: int = 12) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def make_weights() -> None:
    """The random weights that the benchmarks use, in one process each."""
    from bench.t3 import TINY, full_size_checkpoint
    from chatterbox_engine.checkpoint import random_checkpoint

    size = "tiny" if TINY else "full"
    known = [name for name in FAMILIES if (f"tiny-{name}" if name else "tiny") in random_checkpoint.TINY]
    print(f"weights: {size}, {', '.join(name or 'english' for name in known)}")
    with ProcessPoolExecutor(len(known)) as pool:
        for made in [pool.submit(full_size_checkpoint, name, stops=False) for name in known]:
            made.result()


def environment_of(prepared: Path, size: str) -> dict[str, str]:
    """What the stages see: the kernels' cache and the wheels of `prepared`, where they are."""
    found = {
        **os.environ,
        "BENCH_OUT": str(OUT),
        "BENCH_SIZE": size,
        "BENCH_RECIPE": "0",
        "OMP_NUM_THREADS": "1",  # else the threads of all processes compete
    }
    if (prepared / "triton").is_dir():
        found["TRITON_CACHE_DIR"] = str((prepared / "triton").resolve())
    folders = [
        str((prepared / "packages").resolve()),
        "engine",
        "client",
        "gateway",
        ".",
        os.environ.get("PYTHONPATH", ""),
    ]
    if (prepared / "packages").is_dir():
        found["PYTHONPATH"] = os.pathsep.join(folder for folder in folders if folder)
    return found


def install(prepared: Path) -> None:
    """Unpacks the wheels of a machine that reaches no registry, once."""
    wheels, packages = sorted((prepared / "wheels").glob("*.whl")), prepared / "packages"
    if wheels and not packages.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
        subprocess.run([*command, str(packages), *map(str, wheels)], check=True)


def main() -> int:
    """0 when every stage has ended by itself without an error, or is not in this version."""
    parser = argparse.ArgumentParser(description="Measure everything on a GPU, in at most ten minutes.")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--prepared", type=Path, default=PREPARED)
    parser.add_argument("--only", nargs="*", choices=[stage.name for stage in STAGES], help="these stages alone")
    parser.add_argument("--weights", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.weights:
        make_weights()
        return 0
    began = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    install(args.prepared)
    patience = PATIENCE[args.size]
    chosen = [
        replace(stage, limit=patience * stage.limit) for stage in STAGES if not args.only or stage.name in args.only
    ]
    left = patience * args.seconds - (time.monotonic() - began)
    ended = run(chosen, OUT, seconds=left, environment=environment_of(args.prepared, args.size))
    print(f"visit: {OUT / 'visit.md'} and visit.json have all of it", file=sys.stderr)
    return 0 if all(each.how in ("done", "not in this version") for each in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
