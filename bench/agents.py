"""A simulated conversation through the gateway's ElevenLabs socket: text at 50 tokens a second, users who interrupt.

1, 8 and 32 sockets, each with an agent that says `TURNS` turns in a row. A third of the turns are interrupted
at a random moment of their playback. Measured where the audio is played:

    TTFA        from the piece that completes the first sentence to the first audio
    gap         the longest time for which a player that starts with the first audio had nothing to play
    cancelled   tokens that T3 decoded and nobody heard, in percent of all that it decoded

`CHECKPOINT` names what is served: by default full-size random weights on a GPU, and `tiny` elsewhere. Upstream has no
server and takes no text in pieces.
"""

from __future__ import annotations

import asyncio
import base64
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.report import Report, Row, say
from bench.streaming import checkpoint
from chatterbox_client.sentences import Sentences
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_engine.metrics import PUBLISH_SECONDS
from chatterbox_engine.types import TOKENS_PER_SECOND
from loadtest.pages import Pages

SOCKETS = (1, 8, 32)
TURNS = 4
"""Of each socket."""
TEXT_TOKENS_PER_SECOND = 50.0
CHARACTERS_PER_TOKEN = 4
INTERRUPTED = 1 / 3
TEXT = (
    "Thank you for calling, Dr. Smith. Your appointment is at half past three on Monday. Shall I send you a message an"
    " hour before it? You may also move it to another day, if that suits you better."
)
PATH = "/v1/text-to-speech/default/multi-stream-input?output_format=pcm_24000&inactivity_timeout=180"
BYTES_PER_SECOND = 48_000


@dataclass
class Turn:
    """A turn as the agent's user heard it."""

    completed: float = 0.0
    """When the first sentence was complete, on the clock `time.monotonic`."""
    arrivals: list[tuple[float, float]] = field(default_factory=list)
    """When each part of the audio came, and its seconds."""
    heard: float = 0.0
    """Seconds that were played."""

    @property
    def ttfa(self) -> float:
        """Seconds from the first complete sentence to the first audio."""
        return self.arrivals[0][0] - self.completed

    @property
    def gap(self) -> float:
        """Seconds of the longest wait of the player."""
        end, longest = self.arrivals[0][0], 0.0
        for came, seconds in self.arrivals:
            longest = max(longest, came - end)
            end = max(end, came) + seconds
        return longest

    def played(self, now: float) -> float:
        """Seconds that a player that began with the first audio has played."""
        end, played = (self.arrivals[0][0] if self.arrivals else now), 0.0
        for came, seconds in self.arrivals:
            start = max(end, came)
            end = start + seconds
            played += max(0.0, min(end, now) - start)
        return played


def main() -> None:
    """Runs the benchmark."""
    report = Report("agents", notes={"text_tokens_per_second": TEXT_TOKENS_PER_SECOND, "interrupted": INTERRUPTED})
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "CHATTERBOX_CHECKPOINT": checkpoint(Path(folder)),
            "CHATTERBOX_MAX_SLOTS": str(2 * max(SOCKETS)),
            "CHATTERBOX_PRELOAD_ENCODERS": "0",
        }
        options = ServerOptions(environment=environment, log=Path(folder) / "triton.log")
        with TritonServer(options) as server, gateway(server.grpc_url, Path(folder) / "gateway.log") as url:
            asyncio.run(converse(url, 1, 1))
            for sockets in SOCKETS:
                measure(report, server, url, sockets)
    report.write(draw)


@contextmanager
def gateway(grpc_url: str, log: Path) -> Iterator[str]:
    """The URL of a gateway, in a process of its own."""
    command = [str(Path(sys.executable).parent / "chatterbox-gateway"), "--url", grpc_url, "--port", "0"]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[2]
        finally:
            process.terminate()


def measure(report: Report, server: TritonServer, url: str, sockets: int) -> None:
    """A row for so many sockets."""
    before = decoded(server)
    turns = asyncio.run(converse(url, sockets, TURNS))
    spoken = decoded(server) - before
    ttfa, gaps = [turn.ttfa for turn in turns if turn.arrivals], [turn.gap for turn in turns if turn.arrivals]
    heard = sum(turn.heard for turn in turns)
    report.add(
        f"{sockets} sockets" if sockets > 1 else "1 socket",
        ours=statistics.median(ttfa),
        upstream=None,
        unit="s to first audio",
        more=False,
        ttfa_p95=statistics.quantiles(ttfa, n=20)[-1] if len(ttfa) > 1 else ttfa[0],
        gap_median=statistics.median(gaps),
        gap_most=max(gaps),
        cancelled_percent=100 * max(0.0, 1 - heard / spoken),
        audio_seconds=spoken,
        turns=len(turns),
    )


def decoded(server: TritonServer) -> float:
    """Seconds of audio whose tokens T3 has decoded, of cancelled requests too."""
    time.sleep(2 * PUBLISH_SECONDS)
    total: float = Pages.read(server.http_url, server.metrics_url).total("chatterbox_t3_step_utterances_total")
    return total / TOKENS_PER_SECOND


async def converse(url: str, sockets: int, turns: int) -> list[Turn]:
    """What the users of so many agents heard."""
    async with aiohttp.ClientSession(url) as session:
        found = await asyncio.gather(*(agent(session, turns, random.Random(seed)) for seed in range(sockets)))
    say(f"agents: {sockets} sockets have said {turns} turns each")
    return [turn for each in found for turn in each]


async def agent(session: aiohttp.ClientSession, turns: int, draw: random.Random) -> list[Turn]:
    """The turns of one socket."""
    found = []
    async with session.ws_connect(PATH) as socket:
        for number in range(turns):
            interrupt = draw.uniform(0.0, 6.0) if draw.random() < INTERRUPTED else None
            found.append(await say_turn(socket, f"turn-{number}", interrupt))
    return found


async def say_turn(socket: aiohttp.ClientWebSocketResponse, name: str, interrupt: float | None) -> Turn:
    """One turn. interrupt: seconds of playback until the user interrupts; None: never."""
    turn = Turn()
    writing = asyncio.ensure_future(write(socket, name, turn))
    interrupting: asyncio.Future[None] | None = None
    while True:
        message: dict[str, Any] = await socket.receive_json()
        if "error" in message:
            raise RuntimeError(message["message"])
        if message["isFinal"]:
            break
        if message["audio"]:
            turn.arrivals.append((time.monotonic(), len(base64.b64decode(message["audio"])) / BYTES_PER_SECOND))
            if interrupting is None and interrupt is not None:
                interrupting = asyncio.ensure_future(close_after(socket, name, interrupt, writing))
    sent = sum(seconds for _, seconds in turn.arrivals)
    turn.heard = sent
    if message["interrupted"]:
        turn.heard = turn.played(time.monotonic())
    elif interrupting is not None and not interrupting.done():  # all of it came before the user interrupted
        turn.heard = min(sent, interrupt or 0.0)
    if interrupting is not None:
        interrupting.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    return turn


async def write(socket: aiohttp.ClientWebSocketResponse, name: str, turn: Turn) -> None:
    """The turn's text as a language model writes it."""
    sentences = Sentences()
    for start in range(0, len(TEXT), CHARACTERS_PER_TOKEN):
        piece = TEXT[start : start + CHARACTERS_PER_TOKEN]
        await socket.send_json({"text": piece, "context_id": name})
        if not turn.completed and sentences.push(piece):
            turn.completed = time.monotonic()
        await asyncio.sleep(1 / TEXT_TOKENS_PER_SECOND)
    await socket.send_json({"flush": True, "context_id": name})
    await socket.send_json({"close_context": True, "context_id": name})


async def close_after(
    socket: aiohttp.ClientWebSocketResponse, name: str, seconds: float, writing: asyncio.Future[None]
) -> None:
    await asyncio.sleep(seconds)
    writing.cancel()
    await socket.send_json({"close_context": True, "context_id": name})


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """Times by number of sockets."""
    names = [row["case"] for row in rows]
    for column, label in (("ours", "TTFA, median"), ("ttfa_p95", "TTFA, 95%"), ("gap_most", "longest gap")):
        axes.plot(names, [row[column] for row in rows], marker="o", label=label)
    axes.set_ylabel("seconds")
    axes.legend()
