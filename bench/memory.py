"""Memory of the engine over 500 utterances of all lengths, whole answers and streams: what it holds must not grow."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.report import Report, Row, say
from bench.t3 import full_size_checkpoint
from chatterbox_engine import assemble
from chatterbox_engine.config import Config
from chatterbox_engine.errors import RequestError
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.types import SynthesisChunk, SynthesisRequest, SynthesisResult

UTTERANCES = {"cuda": 500, "cpu": 50}
TOGETHER = {"cuda": 64, "cpu": 4}
PARTS = 5
"""Rows of the report."""
TEXT = "One small step after the other leads up the hill and down again to the old house by the sea"
SECONDS = 6.0
WAIT = 300.0


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = full_size_checkpoint(stops=False)
    config = Config(checkpoint=str(checkpoint.path), max_slots=TOGETHER[device], watermark=False)
    engine = assemble.build(config, report=say)
    engine.start()
    report = Report("memory", notes={"together": TOGETHER[device]})
    part, first = UTTERANCES[device] // PARTS, 0.0
    for number in range(PARTS):
        speak(engine, range(part * number, part * (number + 1)), TOGETHER[device])
        resident = resident_mb()
        first = first or resident
        report.add(
            f"after {part * (number + 1)} utterances",
            ours=resident,
            upstream=None,
            unit="MB resident",
            more=False,
            grown_mb=resident - first,
            gpu_reserved_mb=torch.cuda.memory_reserved() / 1e6 if device == "cuda" else None,
            gpu_allocated_mb=torch.cuda.memory_allocated() / 1e6 if device == "cuda" else None,
            utterances=part * (number + 1),
        )
    engine.close()
    report.write(draw)


def speak(engine: Engine, seeds: range, together: int) -> None:
    """Speaks a text for every seed, so many at once; every third is a stream."""
    ended: queue.SimpleQueue[RequestError | None] = queue.SimpleQueue()

    def note(outcome: SynthesisResult | SynthesisChunk | RequestError) -> None:
        if isinstance(outcome, RequestError):
            ended.put(outcome)
        elif isinstance(outcome, SynthesisResult) or outcome.last:
            ended.put(None)

    for number, seed in enumerate(seeds):
        if number >= together:
            _raise(ended.get(timeout=WAIT))
        request = request_of(engine, seed)
        if seed % 3:
            engine.submit(request, note)
        else:
            engine.stream(request, ChunkPolicy(), note)
    for _ in range(min(together, len(seeds))):
        _raise(ended.get(timeout=WAIT))


def request_of(engine: Engine, seed: int) -> SynthesisRequest:
    """A text of 1 to 20 words, and a limit of 0.5 to SECONDS."""
    words = TEXT.split()
    text = " ".join(words[: 1 + seed * 7 % len(words)]) + "."
    seconds = 0.5 + (seed * 13 % 50) / 50 * (SECONDS - 0.5)
    return SynthesisRequest(text=text, seed=seed, sampling=engine.family.sampling, max_seconds=seconds)


def _raise(error: RequestError | None) -> None:
    if error is not None:
        raise error


def resident_mb() -> float:
    """Resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1e3


def draw(axes: Any, rows: Sequence[Row]) -> None:
    for key, label in (("ours", "process"), ("gpu_reserved_mb", "GPU, reserved by torch")):
        if rows[0][key] is not None:
            axes.plot([row["utterances"] for row in rows], [row[key] for row in rows], "o-", label=label)
    axes.set(xlabel="utterances", ylabel="MB", ylim=0)
    axes.legend()
