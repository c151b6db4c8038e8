"""Upper bound of the host's throughput: the engine with networks that take no time, 64 callers, whole answers and
streams.

The GPU's work is left out: T3 and S3Gen return at once. The host's work remains: text processing, scheduling,
publishing tokens, windows, joining, responses. No GPU can exceed this throughput.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.report import Report, Row
from chatterbox_engine.errors import RequestError
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.types import SAMPLE_RATE, SynthesisChunk, SynthesisRequest, SynthesisResult
from tests.unit.engine_fakes import FakeEngine

CALLERS = 64
SECONDS = 10.0
TEXT = (
    "It was a bright cold day in April, and the clocks were striking thirteen, when somebody slipped quickly"
    " through the glass doors."
)  # one token for each character: five seconds

Begin = Callable[[Engine, SynthesisRequest, Callable[[int, bool], None]], None]
"""Starts a request; the last argument is called with each part's samples and whether it is the last one."""


def main() -> None:
    torch.set_num_threads(1)  # as the engine does with a GPU
    report = Report("host", notes={"callers": CALLERS, "seconds": SECONDS, "characters": len(TEXT)})
    for case, begin in (("whole answers", whole), ("streams", stream)):
        wall, cpu, audio, requests = run(begin)
        report.add(
            case,
            ours=audio / wall,
            upstream=None,
            unit="audio s/s",
            requests_per_second=requests / wall,
            host_ms_per_audio_second=1000 * cpu / audio,
        )
    report.write(draw)


def run(begin: Begin) -> tuple[float, float, float, int]:
    """Wall seconds, CPU seconds of all threads, audio seconds and answers, for callers that send without pause."""
    heard: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
    with FakeEngine(max_slots=CALLERS, max_queue=2 * CALLERS, vocoder_batch=16) as fake:
        seed = 0
        for seed in range(CALLERS):
            begin(fake.engine, SynthesisRequest(text=TEXT, seed=seed), lambda *part: heard.put(part))
        began, cpu = time.perf_counter(), time.process_time()
        samples = requests = 0
        while (wall := time.perf_counter() - began) < SECONDS:
            count, last = heard.get(timeout=SECONDS)
            samples += count
            if last:
                requests += 1
                seed += 1
                begin(fake.engine, SynthesisRequest(text=TEXT, seed=seed), lambda *part: heard.put(part))
        return wall, time.process_time() - cpu, samples / SAMPLE_RATE, requests


def whole(engine: Engine, request: SynthesisRequest, heard: Callable[[int, bool], None]) -> None:
    def answer(outcome: SynthesisResult | RequestError) -> None:
        assert isinstance(outcome, SynthesisResult), outcome
        heard(len(outcome.samples), True)

    engine.submit(request, answer)


def stream(engine: Engine, request: SynthesisRequest, heard: Callable[[int, bool], None]) -> None:
    def answer(outcome: SynthesisChunk | RequestError) -> None:
        assert isinstance(outcome, SynthesisChunk), outcome
        heard(len(outcome.samples), outcome.last)

    engine.stream(request, ChunkPolicy(), answer)


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """Audio seconds per second, by kind of request."""
    axes.bar([row["case"] for row in rows], [row["ours"] for row in rows])
    axes.set_ylabel("audio s/s that the host can keep up with")
