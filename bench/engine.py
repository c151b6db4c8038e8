"""Text to audio through both stages at 1 to 128 concurrent utterances of 5 s, next to upstream's own `generate`.

`CHATTERBOX_DTYPE` selects another type of our weights than `auto`.

Upstream takes one utterance at a time, so its speed does not grow with their number. The second half of the figure is
the timeline of the engine's two threads in the last case: T3 steps above, S3Gen batches below.
"""

from __future__ import annotations

import gc
import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from bench.report import Report, Row, say, synchronize
from bench.t3 import full_size_checkpoint
from chatterbox_engine import assemble
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.config import Config
from chatterbox_engine.errors import RequestError
from chatterbox_engine.metrics import NoMetrics
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.types import SAMPLE_RATE, TOKENS_PER_SECOND, SynthesisRequest, SynthesisResult
from tests.fidelity import upstream

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."
SECONDS = 5.0
"""Length of every utterance: with random weights only the limit ends an utterance."""
ROUNDS = 2
"""Number of upstream's utterances, and of our single requests, that the speed is measured over."""
WAIT = 600.0
GPU_CASES = (1, 2, 4, 8, 16, 32, 64, 128)
CPU_CASES = (1, 4)


@dataclass
class TimeLine(NoMetrics):
    """When each thread was busy: (begin, seconds, how many)."""

    steps: list[tuple[float, float, int]] = field(default_factory=list)
    batches: list[tuple[float, float, int]] = field(default_factory=list)

    def stepped(self, seconds: float, utterances: int) -> None:
        self.steps.append((time.monotonic() - seconds, seconds, utterances))

    def vocoded(self, seconds: float, chunks: int) -> None:
        self.batches.append((time.monotonic() - seconds, seconds, chunks))

    def answered(self, stats: Mapping[str, Any]) -> None:
        """Not part of the timeline."""

    def failed(self, error: RequestError) -> None:
        raise error


def main() -> None:
    checkpoint = full_size_checkpoint(stops=False)
    compare("engine", checkpoint, partial(upstream_speed, "engine", checkpoint, upstream.tts(checkpoint)))


def compare(name: str, checkpoint: Checkpoint, measure: Callable[[], float]) -> None:
    """The benchmark of one checkpoint. measure: upstream's audio seconds per wall second."""
    cuda = torch.cuda.is_available()
    cases = GPU_CASES if cuda else CPU_CASES
    with ThreadPoolExecutor(1) as alone:  # whose OpenMP team ends with it, and takes no core from ours
        theirs = alone.submit(measure).result()
    line = TimeLine()
    vocoder = str(checkpoint.vocoder or "")
    options = {"max_slots": cases[-1], "watermark": False, "preload_encoders": False}
    dtype = os.environ.get("CHATTERBOX_DTYPE", "auto")
    config = Config(checkpoint=str(checkpoint.path), vocoder=vocoder, dtype=dtype, **options)
    engine = assemble.build(config, report=say, metrics=line)
    engine.start()
    gc.collect()
    gc.freeze()  # as the server does: otherwise garbage collection scans upstream's objects and stops all threads
    report = Report(name)
    report.notes = {"text": TEXT, "seconds": SECONDS, "watermark": False, "dtype": dtype}
    for count in cases:
        if cuda:
            speak(engine, count)  # kernels and plans of this batch's shapes are made once
        line.steps.clear()
        line.batches.clear()
        spoken = [speak(engine, count, seed) for seed in range(ROUNDS if count == 1 else 1)]
        seconds = sum(each for each, _ in spoken)
        audio = sum(len(result.samples) for _, results in spoken for result in results) / SAMPLE_RATE
        report.add(
            f"{count} utterances",
            ours=audio / seconds,
            upstream=theirs,
            unit="audio s/s",
            utterances=count,
            rtf=seconds / audio,
            latency_ms=1000 * seconds / len(spoken),
            t3_busy=sum(step[1] for step in line.steps) / seconds,
            s3gen_busy=sum(batch[1] for batch in line.batches) / seconds,
        )
    engine.close()
    report.write(lambda axes, rows: draw(axes, rows, line))


def speak(engine: Engine, count: int, first_seed: int = 0) -> tuple[float, list[SynthesisResult]]:
    """Wall seconds until `count` simultaneous requests are answered, and their answers."""
    answers: queue.SimpleQueue[SynthesisResult | RequestError] = queue.SimpleQueue()
    began = time.perf_counter()
    for seed in range(first_seed, first_seed + count):
        request = SynthesisRequest(text=TEXT, seed=seed, sampling=engine.family.sampling, max_seconds=SECONDS)
        engine.submit(request, answers.put)
    results = [answers.get(timeout=WAIT) for _ in range(count)]
    return time.perf_counter() - began, [result for result in results if isinstance(result, SynthesisResult)]


def upstream_speed(name: str, checkpoint: Checkpoint, tts: Any) -> float:
    """Audio seconds per wall second of upstream's `generate`, watermark left out as in ours. tts: upstream's object
    with the same weights, on the CPU."""
    from chatterbox.tts import Conditionals

    tokens = round(SECONDS * TOKENS_PER_SECOND)  # `generate` names its own limit, of 40 s, or none
    infer, infer_turbo = tts.t3.inference, tts.t3.inference_turbo
    tts.t3.inference = lambda **given: infer(**{**given, "max_new_tokens": tokens})
    tts.t3.inference_turbo = lambda **given: infer_turbo(**given, max_gen_len=tokens)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for part in (tts.t3, tts.s3gen):
        part.to(device)
    tts.device = device
    tts.conds = Conditionals.load(checkpoint.path / "conds.pt").to(device)
    tts.watermarker.apply_watermark = lambda wave, **_: wave
    if device == "cuda":
        tts.generate(TEXT)  # the warm-up
    synchronize()
    samples, began = 0, time.perf_counter()
    for seed in range(ROUNDS):
        torch.manual_seed(seed)
        samples += tts.generate(TEXT).shape[-1]
    synchronize()
    speed = samples / SAMPLE_RATE / (time.perf_counter() - began)
    say(f"{name}: upstream speaks {speed:.3f} audio seconds per second, {samples / SAMPLE_RATE:.1f} s in all")
    return speed


def draw(axes: Any, rows: Sequence[Row], line: TimeLine) -> None:
    figure = axes.figure
    axes.set_subplotspec(figure.add_gridspec(2, 1)[0])
    below = figure.add_subplot(figure.add_gridspec(2, 1)[1])
    counts = [row["utterances"] for row in rows]
    axes.plot(counts, [row["ours"] for row in rows], "o-", label="chatterbox-triton")
    axes.plot(counts, [row["upstream"] for row in rows], "--", label="chatterbox-tts 0.1.7")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("utterances together")
    axes.set_ylabel("audio s/s")
    axes.legend()
    start = min(begin for begin, _, _ in line.steps)
    for level, spans, colour in ((1, line.steps, "tab:blue"), (0, line.batches, "tab:orange")):
        below.broken_barh([(begin - start, seconds) for begin, seconds, _ in spans], (level, 0.8), color=colour)
    below.set_yticks([0.4, 1.4], ["S3Gen", "T3"])
    below.set_xlabel(f"seconds, {counts[-1]} utterances")
