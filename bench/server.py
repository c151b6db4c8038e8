"""What Triton adds to a request: the engine called directly, and the same requests over HTTP, gRPC and the stream.

The direct calls happen in a process of their own with the settings that the server's model has; both take one request
after the other, in turns, so that a machine that is busy for a while is so for both. What is compared is the time from
the call to the audio that is not the engine's own: `total_ms` of the answer's statistics, which begins when the engine
has the request and ends when it hands the audio over, is taken off. So a slow or busy processor does not count as
Triton's.

Of whole utterances it is also told where that time goes, by the timestamps that Triton writes of every request (its
trace), whose clock is `time.monotonic_ns`:

    to_triton   from the call until Triton has the request: the client's encoding, the connection, Triton's decoding
    queue       until the batcher hands it to the model
    model       until the model has answered, without the engine's time: tensors through shared memory to the model's
                process, parsing, the answer's tensors, and back; of it
    parse       is what `contract.parse` and
    outputs     what `contract.outputs` take, both timed in the process of the direct calls
    back        until the caller has the audio: Triton's encoding, the transfer, the client's decoding
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.report import Report, Row, say
from chatterbox_client import Audio, Client, concatenate
from chatterbox_client.request import speech_request
from chatterbox_engine.launcher import ServerOptions, TritonServer

CHECKPOINT = os.environ.get("CHATTERBOX_CHECKPOINT", "tiny")
ROUNDS = 25
WARM_UP = 2
LINES = {
    "1 s of audio": ("A short line.", 1.0),
    "4 s of audio": (
        "A line that goes on for longer, so that there is more audio to carry from one to the other.",
        4.0,
    ),
}

Trace = dict[str, int]
"""Nanoseconds of the clock `time.monotonic_ns` by the names that Triton gives its timestamps."""


@dataclass(frozen=True)
class Sample:
    """One request as its caller saw it."""

    called: int
    """time.monotonic_ns()"""
    answered: int
    engine: float
    """Milliseconds, the engine's own."""
    parse: float = 0.0
    outputs: float = 0.0

    @property
    def overhead(self) -> float:
        """Milliseconds that were not the engine's."""
        return (self.answered - self.called) / 1e6 - self.engine


Call = Callable[[str, int, float], Sample]
"""Speaks a text with a seed, at most so many seconds."""


def main() -> None:
    report = Report("server", notes={"checkpoint": CHECKPOINT, "rounds": ROUNDS})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        options = ServerOptions(
            environment={"CHATTERBOX_CHECKPOINT": CHECKPOINT, "CHATTERBOX_PRELOAD_ENCODERS": "0"},
            log=Path(folder, "triton.log"),
            arguments=trace_options(file),
        )
        with (
            TritonServer(options) as server,
            DirectEngine() as direct,
            Client(server.http_url) as http,
            Client(server.grpc_url, "grpc") as grpc,
        ):
            calls = {"direct": direct, "HTTP": timed(http), "gRPC": timed(grpc), "stream": timed_stream(grpc)}
            samples = {case: collect(case, calls, text, seconds) for case, (text, seconds) in LINES.items()}
        traces = read_traces(file.read_text(encoding="utf-8"), "chatterbox")  # complete once the server has ended
    for case, found in samples.items():
        compare(report, case, found, traces)
    report.write(draw)


def collect(case: str, calls: dict[str, Call], text: str, seconds: float) -> dict[str, list[Sample]]:
    """Samples of each way to call, in turns."""
    found: dict[str, list[Sample]] = {name: [] for name in calls}
    for number in range(-WARM_UP, ROUNDS):
        for name, call in calls.items():
            sample = call(text, abs(number), seconds)
            if number >= 0:
                found[name].append(sample)
        if number % 5 == 0:
            say(f"server: {case}, round {number} of {ROUNDS}")
    return found


def compare(report: Report, case: str, found: dict[str, list[Sample]], traces: Sequence[Trace]) -> None:
    """Adds a row for each way to call Triton, with the parts of its median where there are traces."""
    direct = found["direct"]
    base = statistics.median(sample.overhead for sample in direct)
    for name, samples in found.items():
        if name == "direct":
            continue
        values = [sample.overhead for sample in samples]
        p50 = statistics.median(values)
        columns = {"p95": statistics.quantiles(values, n=20)[-1], "direct": base, "beyond_direct": p50 - base}
        if name != "stream":
            columns |= medians([parts(sample, traces) for sample in samples])
            columns["of model: parse"] = statistics.median(sample.parse for sample in direct)
            columns["of model: outputs"] = statistics.median(sample.outputs for sample in direct)
        report.add(f"{name}, {case}", ours=p50, upstream=None, unit="ms besides the engine", more=False, **columns)


def trace_options(file: Path) -> tuple[str, ...]:
    """What makes Triton write the timestamps of every request into a file."""
    settings = (f"triton,file={file}", "rate=1", "level=TIMESTAMPS")
    return tuple(part for setting in settings for part in ("--trace-config", setting))


def read_traces(text: str, model: str) -> list[Trace]:
    """The traces of a model's requests, from Triton's file."""
    requests: defaultdict[int, Trace] = defaultdict(dict)
    models: dict[int, str] = {}
    for entry in json.loads(text):
        requests[entry["id"]] |= {stamp["name"]: stamp["ns"] for stamp in entry.get("timestamps", ())}
        if "model_name" in entry:
            models[entry["id"]] = entry["model_name"]
    return [requests[number] for number, name in models.items() if name == model]


def parts(sample: Sample, traces: Sequence[Trace]) -> dict[str, float]:
    """Milliseconds of each part of a request that was the only one under way."""
    (trace,) = [trace for trace in traces if sample.called <= trace["REQUEST_START"] <= sample.answered]
    names = ("REQUEST_START", "COMPUTE_START", "INFER_RESPONSE_COMPLETE")
    moments = (sample.called, *(trace[name] for name in names), sample.answered)
    to_triton, queue, model, back = ((end - begin) / 1e6 for begin, end in itertools.pairwise(moments))
    return {"to_triton": to_triton, "queue": queue, "model": model - sample.engine, "back": back}


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each column."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def timed(client: Client) -> Call:
    """Whole utterances."""
    return lambda text, seed, seconds: clocked(lambda: client.speak(text, seed=seed, max_seconds=seconds))


def timed_stream(client: Client) -> Call:
    """Audio in chunks, until the last of them."""
    return lambda text, seed, seconds: clocked(
        lambda: concatenate(list(client.stream(text, seed=seed, max_seconds=seconds)))
    )


def clocked(speak: Callable[[], Audio]) -> Sample:
    called = time.monotonic_ns()
    audio = speak()
    return Sample(called, time.monotonic_ns(), float(audio.stats["total_ms"]))


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

    def __call__(self, text: str, seed: int, seconds: float) -> Sample:
        self._end.send((text, seed, seconds))
        sample: Sample = self._end.recv()
        return sample


def serve_directly(end: Connection, checkpoint: str) -> None:
    """The body of that process."""
    import queue

    from chatterbox_engine import assemble
    from chatterbox_engine.config import Config
    from chatterbox_engine.serving import contract
    from chatterbox_engine.types import SynthesisResult

    config = Config(checkpoint=checkpoint)
    engine = assemble.build(config)
    terms = contract.Terms(max_text_chars=config.max_text_chars, max_seconds=config.max_seconds, family=engine.family)
    engine.start()
    end.send("ready")
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    while (order := end.recv()) is not None:
        text, seed, seconds = order
        tensors = speech_request(text, seed=seed, max_seconds=seconds)
        arrived = time.monotonic_ns()
        parsed = contract.parse(tensors, terms)
        called = time.monotonic_ns()
        engine.submit(parsed.request, answers.put)
        answer = answers.get()
        answered = time.monotonic_ns()
        assert isinstance(answer, SynthesisResult), answer
        contract.outputs(answer, parsed.format)
        done = time.monotonic_ns()
        times = {"parse": (called - arrived) / 1e6, "outputs": (done - answered) / 1e6}
        end.send(Sample(called, answered, answer.stats["total_ms"], **times))
    engine.close()


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """A bar for each way to call and each length."""
    names = [row["case"] for row in rows]
    axes.barh(names, [row["beyond_direct"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="p50 of the time that Triton, the network and the client add, ms")
