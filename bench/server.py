"""What Triton adds to a request: the engine called directly, and the same requests over HTTP, gRPC and the stream.

The direct calls happen in a process of their own with the settings that the server's model has; both take one request
after the other, in turns, so that a machine that is busy for a while is so for both. What is compared is the time from
the call to the audio that is not the engine's own: `total_ms` of the answer's statistics, which begins when the engine
has the request and ends when it hands the audio over, is taken off. So a slow or busy processor does not count as
Triton's.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.report import Report, Row, say
from chatterbox_client import Client, concatenate
from chatterbox_engine.launcher import ServerOptions, TritonServer

CHECKPOINT = os.environ.get("CHATTERBOX_CHECKPOINT", "tiny")
ROUNDS = 25
LINES = {
    "1 s of audio": ("A short line.", 1.0),
    "4 s of audio": (
        "A line that goes on for longer, so that there is more audio to carry from one to the other.",
        4.0,
    ),
}

Call = Callable[[str, int, float], float]
"""Speaks a text with a seed, at most so many seconds; returns the milliseconds that were not the engine's."""


def main() -> None:
    report = Report("server", notes={"checkpoint": CHECKPOINT, "rounds": ROUNDS})
    with tempfile.TemporaryDirectory() as folder:
        options = ServerOptions(environment={"CHATTERBOX_CHECKPOINT": CHECKPOINT}, log=Path(folder, "triton.log"))
        with (
            TritonServer(options) as server,
            DirectEngine() as direct,
            Client(server.http_url) as http,
            Client(server.grpc_url, "grpc") as grpc,
        ):
            calls: dict[str, Call] = {
                "direct": direct,
                "HTTP": timed(http),
                "gRPC": timed(grpc),
                "stream": timed_stream(grpc),
            }
            for case, (text, seconds) in LINES.items():
                compare(report, case, calls, text, seconds)
    report.write(draw)


def compare(report: Report, case: str, calls: dict[str, Call], text: str, seconds: float) -> None:
    """Adds a row for each way to call."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-2, ROUNDS):
        for name, call in calls.items():
            overhead = call(text, abs(number), seconds)
            if number >= 0:  # the first two warm up
                found[name].append(overhead)
    base = statistics.median(found["direct"])
    for name, values in found.items():
        if name == "direct":
            continue
        p50 = statistics.median(values)
        columns = {"p95": statistics.quantiles(values, n=20)[-1], "direct": base, "beyond_direct": p50 - base}
        report.add(f"{name}, {case}", ours=p50, upstream=None, unit="ms besides the engine", more=False, **columns)


def timed(client: Client) -> Call:
    """Whole utterances."""

    def call(text: str, seed: int, seconds: float) -> float:
        began = time.perf_counter()
        audio = client.speak(text, seed=seed, max_seconds=seconds)
        return (time.perf_counter() - began) * 1000 - float(audio.stats["total_ms"])

    return call


def timed_stream(client: Client) -> Call:
    """Audio in chunks, until the last of them."""

    def call(text: str, seed: int, seconds: float) -> float:
        began = time.perf_counter()
        audio = concatenate(list(client.stream(text, seed=seed, max_seconds=seconds)))
        return (time.perf_counter() - began) * 1000 - float(audio.stats["total_ms"])

    return call


class DirectEngine:
    """An engine in a process of its own, as a `Call`: only the call itself is timed, inside that process."""

    def __enter__(self) -> DirectEngine:
        context = multiprocessing.get_context("spawn")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=serve_directly, args=(theirs, CHECKPOINT), daemon=True)
        self._process.start()
        say(f"server: direct engine {self._end.recv()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._end.send(None)
        self._process.join()

    def __call__(self, text: str, seed: int, seconds: float) -> float:
        self._end.send((text, seed, seconds))
        overhead: float = self._end.recv()
        return overhead


def serve_directly(end: Connection, checkpoint: str) -> None:
    """The body of that process."""
    import queue

    from chatterbox_engine import assemble
    from chatterbox_engine.config import Config
    from chatterbox_engine.types import SynthesisRequest, SynthesisResult

    engine = assemble.build(Config(checkpoint=checkpoint))
    engine.start()
    end.send("ready")
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    while (order := end.recv()) is not None:
        text, seed, seconds = order
        began = time.perf_counter()
        request = SynthesisRequest(text, seed, max_seconds=seconds)
        engine.submit(request, answers.put)
        answer = answers.get()
        passed = (time.perf_counter() - began) * 1000
        assert isinstance(answer, SynthesisResult), answer
        end.send(passed - answer.stats["total_ms"])
    engine.close()


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """A bar for each way to call and each length."""
    names = [row["case"] for row in rows]
    axes.barh(names, [row["beyond_direct"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="p50 of the time that Triton, the network and the client add, ms")
