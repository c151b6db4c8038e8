"""Two checkouts turn by turn on one machine, whose speed changes from minute to minute: `make bench NAME=versions
OTHER=folder`, where the folder is a git worktree of the other version after its own `make setup`. `PARTS` chooses among
t3, nano and streams.

Each checkout is a process of its own that loads T3 and an engine of Nano once; then the two measure the same case in
turn, `ROUNDS` times, while the other one waits. The column `upstream` is the other checkout.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROUNDS = 7
STEPS = 12
T3_CASES = (1, 2, 4, 8, 16)
NANO_CASES = (1, 4)
STREAMS = (1, 4)

Cases = dict[str, Callable[[], dict[str, float]]]


def main() -> None:
    from bench.report import Report, say

    here = Path(__file__).resolve().parents[1]
    other = os.environ.get("OTHER")
    if not other:
        say("versions: skipped, as OTHER names no checkout to compare with")
        return
    parts = os.environ.get("PARTS", "t3,nano,streams").split(",")
    report = Report("versions")
    report.notes = {"other": revision(Path(other)), "this": revision(here), "rounds": ROUNDS}
    for part in parts:
        workers = [Worker(folder, part) for folder in (here, Path(other))]
        for case in workers[0].cases:
            say(f"versions: {case}")
            rounds = [[worker.measure(case) for worker in workers] for _ in range(ROUNDS)]
            for figure in rounds[0][0]:
                both = [(ours[figure], theirs[figure]) for ours, theirs in rounds]
                ours, theirs = (statistics.median(of) for of in zip(*both, strict=True))
                what, unit = figure.rsplit(", ", 1)
                report.add(what, ours=ours, upstream=theirs, unit=unit, more=False, spread=spread(both))
        for worker in workers:
            worker.close()
    report.write(draw)


def spread(both: Sequence[tuple[float, float]]) -> float:
    """How far a round's ratio lies from the median one, at most: what the machine's noise may explain."""
    ratios = [theirs / ours for ours, theirs in both]
    middle = statistics.median(ratios)
    return max(abs(ratio / middle - 1) for ratio in ratios)


def revision(folder: Path) -> str:
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


class Worker:
    """A process of a checkout. It reads a case a line and writes figures, as JSON; a unit ends a figure's name."""

    def __init__(self, folder: Path, part: str) -> None:
        source = Path(__file__).read_text()
        self.process = subprocess.Popen(
            [folder / ".venv/bin/python", "-c", source, part],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.cases: list[str] = self.read()

    def measure(self, case: str) -> dict[str, float]:
        assert self.process.stdin
        self.process.stdin.write(case + "\n")
        figures: dict[str, float] = self.read()
        return figures

    def read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a checkout's process ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve(part: str) -> None:
    """What a checkout's process does. It uses only names of `bench.t3` and `bench.engine` that each version has."""
    cases = {"t3": t3_cases, "nano": nano_cases, "streams": stream_cases}[part]()
    for measure in cases.values():
        measure()  # kernels of its shapes are made
    print(json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        print(json.dumps(cases[line.strip()]()), flush=True)


def t3_cases() -> Cases:
    import torch

    from bench import t3

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, _ = t3.choose_dtypes("auto", device, lambda _line: None)
    checkpoint = t3.full_size_checkpoint()
    model = t3.T3.from_state_dict(checkpoint.t3_state(), checkpoint.dims.t3, device=device, dtype=dtype)
    runner = t3.make_runner(model, T3_CASES[-1])

    def measure(count: int) -> dict[str, float]:
        step, prefill = t3.step_seconds(runner, checkpoint, count, STEPS)
        return {f"T3 step of {count}, ms": 1000 * step, f"T3 prefill of {count}, ms": 1000 * prefill}

    return {f"T3, {count} utterances": partial(measure, count) for count in T3_CASES}


def nano_cases() -> Cases:
    from bench import engine
    from chatterbox_engine import assemble

    checkpoint = engine.full_size_checkpoint("nano", stops=False)
    config = engine.Config(checkpoint=str(checkpoint.path), max_slots=NANO_CASES[-1], watermark=False)
    nano = assemble.build(config, report=lambda _line: None, metrics=engine.TimeLine())
    nano.start()

    def measure(count: int) -> dict[str, float]:
        return {f"Nano, {count} utterances, s": engine.speak(nano, count)[0]}

    return {f"Nano, {count} utterances": partial(measure, count) for count in NANO_CASES}


def stream_cases() -> Cases:
    from bench import streaming
    from chatterbox_client import Client
    from chatterbox_engine.launcher.server import ServerOptions, TritonServer

    folder = Path(tempfile.mkdtemp())
    environment = {"CHATTERBOX_CHECKPOINT": streaming.checkpoint(folder), "CHATTERBOX_MAX_SLOTS": "8"}
    server = TritonServer(ServerOptions(environment=environment, log=folder / "triton.log"))
    server.__enter__()  # ends with the process
    client = Client(server.grpc_url, "grpc")

    def measure(count: int) -> dict[str, float]:
        began = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            heard = list(pool.map(lambda seed: streaming.listen(client, seed), range(count)))
        seconds = time.perf_counter() - began
        return {
            f"{count} streams, time to first audio, ms": 1000 * statistics.median(it.first for it in heard),
            f"{count} streams, longest gap, of the chunk before it": max(it.gap for it in heard),
            f"{count} streams, real-time factor, s/s": seconds / sum(it.audio for it in heard),
        }

    return {f"{count} streams": partial(measure, count) for count in STREAMS}


def draw(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    axes.barh([row["case"] for row in rows], [row["ratio"] for row in rows])
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("the other checkout's time / this one's")


if __name__ == "__main__":
    serve(sys.argv[1])
