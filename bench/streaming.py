"""Streams through the real server with the real client: time to first audio, starved playback, cost; 1 to 64 streams.

`CHECKPOINT` names what is served: by default full-size random weights on a GPU, and `tiny` elsewhere. Upstream has no
streams and no server; beside ours stands what the same client waits for when it asks this server for whole answers.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.report import Report, Row, quantile, say
from chatterbox_client import Client
from chatterbox_engine.checkpoint import random_checkpoint
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_engine.synthesis.streaming import ChunkPolicy, Cursor
from chatterbox_engine.types import TOKENS_PER_SECOND

STREAMS = (1, 4, 16, 32, 64)
ROUNDS = 3
"""Streams that each client opens, one after the other."""
SECONDS = 8.0
TEXT = (
    "It was a bright cold day in April, and the clocks were striking thirteen, when somebody, his chin against the"
    " wind, slipped through the glass doors, not quickly enough to keep the dust from entering along with him."
)
PROMPT_TOKENS = 250  # of the longest voice prompt, ten seconds
WARM_UP = 2


@dataclass(frozen=True)
class Heard:
    """One stream as its client heard it."""

    first: float
    """Seconds to the first chunk."""
    starved: float
    """Seconds for which a player that starts with the first chunk had nothing to play."""
    gap: float
    """The longest wait for a chunk, over the length of the audio that came just before it."""
    audio: float
    """Seconds of audio."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "triton.log"
        environment = {
            "CHATTERBOX_CHECKPOINT": checkpoint(Path(folder)),
            "CHATTERBOX_MAX_SLOTS": str(max(STREAMS)),
            "CHATTERBOX_PRELOAD_ENCODERS": "0",
        }
        report = Report("streaming", notes={"chunks": cost(), "seconds": SECONDS, "rounds": ROUNDS})
        with TritonServer(ServerOptions(environment=environment, log=log)) as server:
            measure(server, report)
    report.write(draw)


def checkpoint(folder: Path) -> str:
    """What to serve."""
    if "CHECKPOINT" in os.environ:
        return os.environ["CHECKPOINT"]
    if not torch.cuda.is_available():
        return "tiny"
    say("streaming: writing full-size random weights")
    random_checkpoint.write_random_checkpoint(folder / "full", "full")
    return str(folder / "full")


def cost() -> list[dict[str, Any]]:
    """Frames that a stream has S3Gen compute, over those of the whole answer, with the longest voice prompt."""
    rows = []
    for seconds in (5, 10, 20, 40):
        tokens, cursor, computed, chunks = seconds * TOKENS_PER_SECOND, Cursor(ChunkPolicy()), 0, 0
        while cursor.segment == 0:
            span = cursor.take(tokens, complete=True)
            assert span is not None, "all tokens are there"
            computed += 2 * (PROMPT_TOKENS + span.tokens)
            chunks += 1
        whole = 2 * (PROMPT_TOKENS + tokens)
        rows.append({"seconds": seconds, "chunks": chunks, "frames": computed, "over_whole": computed / whole})
        say(f"streaming: {seconds} s in {chunks} chunks: {computed} frames, {computed / whole:.2f} of a whole answer's")
    return rows


def measure(server: TritonServer, report: Report) -> None:
    """One row for each number of clients."""
    with Client(server.grpc_url, "grpc") as client:
        for seed in range(WARM_UP):
            listen(client, seed)
        for count in STREAMS:
            began = time.monotonic()
            with ThreadPoolExecutor(count) as pool:
                heard = list(pool.map(lambda seed: listen(client, seed), range(count * ROUNDS)))
                seconds = time.monotonic() - began
                whole = list(pool.map(lambda seed: wait(client, seed), range(count * ROUNDS)))
            first = [it.first for it in heard]
            report.add(
                f"{count} streams",
                ours=1000 * statistics.median(first),
                upstream=None,
                unit="ms to first audio, p50",
                more=False,
                whole_answer=1000 * statistics.median(whole),
                p90=1000 * quantile(first, 0.90),
                p99=1000 * quantile(first, 0.99),
                starved_streams=sum(it.starved > 0 for it in heard),
                starved_seconds=sum(it.starved for it in heard),
                worst_gap=max(it.gap for it in heard),
                rtf=seconds / sum(it.audio for it in heard),
                streams=count,
            )


def listen(client: Client, seed: int) -> Heard:
    """Plays one stream without sound."""
    began = time.monotonic()
    first = played_until = starved = gap = audio = arrived = before = 0.0
    for chunk in client.stream(TEXT, seed=seed, max_seconds=SECONDS):
        now = time.monotonic() - began
        if chunk.index == 0:
            first = played_until = now
        else:
            gap = max(gap, (now - arrived) / before)
            starved += max(0.0, now - played_until)
        played_until = max(played_until, now) + chunk.duration
        arrived, before = now, chunk.duration
        audio += chunk.duration
    return Heard(first, starved, gap, audio)


def wait(client: Client, seed: int) -> float:
    """Seconds to the same answer as a whole."""
    began = time.monotonic()
    client.speak(TEXT, seed=seed, max_seconds=SECONDS)
    return time.monotonic() - began


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """Time to first audio over the number of streams."""
    streams = [row["streams"] for row in rows]
    axes.plot(streams, [row["whole_answer"] for row in rows], "o--", label="whole answer, p50")
    for key, label in (("p99", "stream, p99"), ("p90", "stream, p90"), ("ours", "stream, p50")):
        axes.plot(streams, [row[key] for row in rows], "o-", label=label)
    axes.set(xscale="log", yscale="log", xlabel="concurrent streams", ylabel="ms to first audio", xticks=streams)
    axes.set_xticklabels([str(count) for count in streams])
    axes.legend()
