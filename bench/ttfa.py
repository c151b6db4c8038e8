"""Time to first audio of 1 to 64 streams together, by the engine alone: no server and no client in between.

Each of the listeners opens its next stream when the last one has ended. `streaming` measures the same through Triton.
"""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from bench.report import Report, Row, quantile, say
from bench.t3 import full_size_checkpoint
from chatterbox_engine import assemble
from chatterbox_engine.config import Config
from chatterbox_engine.errors import RequestError
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.types import SAMPLE_RATE, SynthesisChunk, SynthesisRequest

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."
SECONDS = 5.0
STREAMS = {"cuda": (1, 8, 32, 64), "cpu": (1, 4)}
ROUNDS = {"cuda": 4, "cpu": 2}
WAIT = 300.0


@dataclass
class Heard:
    """What the listeners of one case have heard."""

    first: list[float] = field(default_factory=list)
    """Seconds to the first chunk of each stream."""
    gaps: list[float] = field(default_factory=list)
    """Seconds that a chunk came after the end of the audio before it, of those that did."""
    audio: float = 0.0
    """Seconds of audio."""


@dataclass
class Listener:
    """One stream after the other."""

    opened: float = 0.0
    played_until: float = 0.0

    def note(self, now: float, chunk: SynthesisChunk, heard: Heard) -> None:
        """Notes a chunk, as a player that starts with the first one."""
        if chunk.index == 0:
            heard.first.append(now - self.opened)
            self.played_until = now
        elif now > self.played_until:
            heard.gaps.append(now - self.played_until)
        seconds = len(chunk.samples) / SAMPLE_RATE
        self.played_until = max(now, self.played_until) + seconds
        heard.audio += seconds


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = full_size_checkpoint(stops=False)
    config = Config(checkpoint=str(checkpoint.path), max_slots=STREAMS[device][-1], watermark=False)
    engine = assemble.build(config, report=say)
    engine.start()
    report = Report("ttfa", notes={"text": TEXT, "seconds": SECONDS, "rounds": ROUNDS[device], "watermark": False})
    listen(engine, STREAMS[device][-1], 1)  # what is compiled and chosen at first use
    for count in STREAMS[device]:
        wall, heard = listen(engine, count, ROUNDS[device])
        report.add(
            f"{count} streams",
            ours=1000 * statistics.median(heard.first),
            upstream=None,
            unit="ms to first audio, p50",
            more=False,
            p95=1000 * quantile(heard.first, 0.95),
            p99=1000 * quantile(heard.first, 0.99),
            late_chunks=len(heard.gaps),
            worst_gap_ms=1000 * max(heard.gaps, default=0.0),
            audio_per_second=heard.audio / wall,
            streams=count,
        )
    engine.close()
    report.write(draw)


def listen(engine: Engine, count: int, rounds: int) -> tuple[float, Heard]:
    """Wall seconds of `count` listeners that open `rounds` streams each, and what they heard."""
    came: queue.SimpleQueue[tuple[int, float, SynthesisChunk | RequestError]] = queue.SimpleQueue()
    listeners, heard, left = [Listener() for _ in range(count)], Heard(), [rounds] * count

    def tell(number: int, outcome: SynthesisChunk | RequestError) -> None:
        came.put((number, time.perf_counter(), outcome))

    def begin(number: int) -> None:
        left[number] -= 1
        listeners[number].opened = time.perf_counter()
        seed = number + count * left[number]
        request = SynthesisRequest(text=TEXT, seed=seed, sampling=engine.family.sampling, max_seconds=SECONDS)
        engine.stream(request, ChunkPolicy(), partial(tell, number))

    began = time.perf_counter()
    for number in range(count):
        begin(number)
    open_streams = count
    while open_streams:
        number, now, outcome = came.get(timeout=WAIT)
        if isinstance(outcome, RequestError):
            raise outcome
        listeners[number].note(now, outcome, heard)
        if outcome.last and left[number]:
            begin(number)
        elif outcome.last:
            open_streams -= 1
    return time.perf_counter() - began, heard


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """Time to first audio over the number of streams."""
    for key, label in (("ours", "p50"), ("p95", "p95"), ("p99", "p99")):
        axes.plot([row["streams"] for row in rows], [row[key] for row in rows], "o-", label=label)
    axes.set(xscale="log", yscale="log", xlabel="streams together", ylabel="ms to first audio")
    axes.legend()
