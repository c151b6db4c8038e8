"""LiveKit Agents and Pipecat, unmodified, on the gateway's ElevenLabs sockets: a conversation with interruptions.

The demo voice speaks; a recogniser tells whether each turn that was not interrupted is its text.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_engine.types import SAMPLE_RATE
from tests.server.cancelled import requests_cancelled
from tests.server.front import Front
from tests.server.test_demo_voice import BOUND
from tools.demo_voice.recogniser import Recogniser, error_rate

pytestmark = [pytest.mark.server, pytest.mark.full]

PACKAGES = ("livekit-agents==1.8.*", "livekit-plugins-elevenlabs==1.8.*", "pipecat-ai[elevenlabs]==1.14.*")

TURNS = (
    "Hello from the server. The first one is here.",
    "It was a cold day in the middle of winter. Good morning.",
    "This is another voice. The same words in another voice.",
    "Good evening. This is a short clip.",
    "Hello from the other side. The second one is here.",
    "The first sound comes at once. Good morning.",
    "This is a short clip. It was a cold day in the middle of winter.",
    "Hello from the python client. Good evening.",
    "The line that sounds wrong. This is another voice.",
    "Good morning. Hello from the other side.",
)
INTERRUPTIONS = 3
"""Of each turn, before it is spoken to its end."""

LIVEKIT = """
import aiohttp
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT
from livekit.plugins import elevenlabs


async def converse(address, turns, interruptions):
    async with aiohttp.ClientSession() as session:
        options = {"voice_id": "default", "encoding": "pcm_24000", "http_session": session}
        tts = elevenlabs.TTS(base_url=f"http://{address}/v1", api_key="none", **options)
        for text in turns:
            for _ in range(interruptions):
                async with tts.stream() as stream:
                    stream.push_text(text + " And more of this.")
                    await anext(aiter(stream))
            async with tts.stream() as stream:
                for word in text.split():
                    stream.push_text(word + " ")
                stream.end_input()
                audio, words = b"", []
                async for event in stream:
                    audio += bytes(event.frame.data)
                    for word in event.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, []):
                        words.append((str(word), word.start_time, word.end_time))
            yield audio, words
        await tts.aclose()
"""

PIPECAT = """
from pipecat.frames.frames import (
    EndFrame, InterruptionFrame, LLMFullResponseEndFrame, LLMFullResponseStartFrame, LLMTextFrame, TTSAudioRawFrame,
    TTSStoppedFrame, TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.elevenlabs.tts import ElevenLabsTTSService
from pipecat.tests.utils import QueuedFrameProcessor
from pipecat.workers.runner import WorkerRunner


async def converse(address, turns, interruptions):
    settings = ElevenLabsTTSService.Settings(voice="default")
    service = ElevenLabsTTSService(api_key="none", url=f"ws://{address}", sample_rate=24_000, settings=settings)
    frames, started = asyncio.Queue(), asyncio.Event()
    sink = QueuedFrameProcessor(queue=frames, queue_direction=FrameDirection.DOWNSTREAM)
    params = PipelineParams(audio_out_sample_rate=24_000)
    worker = PipelineWorker(Pipeline([service, sink]), cancel_on_idle_timeout=False, params=params)

    @worker.event_handler("on_pipeline_started")
    async def begun(worker, frame):
        started.set()

    async def until(*kinds):
        found = [await frames.get()]
        while not isinstance(found[-1], kinds):
            found.append(await frames.get())
        return found

    async def write(text):
        await worker.queue_frame(LLMFullResponseStartFrame())
        for word in text.split():
            await worker.queue_frame(LLMTextFrame(word + " "))

    runner = WorkerRunner()
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await started.wait()
    for text in turns:
        for _ in range(interruptions):
            await write(text + " And more of this.")
            await until(TTSAudioRawFrame)
            await worker.queue_frame(InterruptionFrame())
            await until(InterruptionFrame)
        await write(text)
        await worker.queue_frame(LLMFullResponseEndFrame())
        found = await until(TTSStoppedFrame)
        audio = b"".join(frame.audio for frame in found if isinstance(frame, TTSAudioRawFrame))
        spoken = [frame for frame in found if isinstance(frame, TTSTextFrame)]
        first = spoken[0].pts
        yield audio, [(frame.text, (frame.pts - first) / 1e9, (frame.pts - first) / 1e9) for frame in spoken]
    await worker.queue_frame(EndFrame())
    await running
"""

MAIN = """

async def main(address, turns, interruptions):
    async for audio, words in converse(address, turns, interruptions):
        print("turn:", json.dumps({"audio": base64.b64encode(audio).decode(), "words": words}), flush=True)


asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])))
"""


@dataclass(frozen=True)
class Heard:
    """A turn as a framework got it."""

    samples: np.ndarray
    words: list[tuple[str, float, float]]
    """Word, start and end in seconds."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In an environment of its own: 1 GB."""
    folder = tmp_path_factory.mktemp("agents")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    program = folder / "bin" / "python"
    install = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    subprocess.run(install, check=True)
    return program


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("demo") / "triton.log"
    with TritonServer(ServerOptions(environment={"CHATTERBOX_CHECKPOINT": "demo"}, log=log)) as running:
        yield running


@pytest.fixture(scope="module")
def demo_front(demo_server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    options = ["--metrics-url", demo_server.metrics_url]
    with Front(demo_server.grpc_url, tmp_path_factory.mktemp("front") / "front.log", options) as running:
        yield running


def converse(python: Path, program: str, front: Front, turns: tuple[str, ...]) -> list[Heard]:
    script = f"import asyncio, base64, json, sys\n{program}{MAIN}"
    command = [str(python), "-W", "ignore", "-c", script, front.address, json.dumps(turns), str(INTERRUPTIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1_500)
    assert done.returncode == 0, done.stderr[-4_000:]
    lines: list[dict[str, Any]] = [
        json.loads(line.removeprefix("turn: ")) for line in done.stdout.splitlines() if line.startswith("turn: ")
    ]
    return [
        Heard(np.frombuffer(base64.b64decode(line["audio"]), "<i2") / np.float32(32_768), line["words"])
        for line in lines
    ]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("program", [LIVEKIT, PIPECAT], ids=["livekit", "pipecat"])
def test_a_conversation_of_ten_turns_with_three_interruptions_each(
    python: Path, demo_server: TritonServer, demo_front: Front, program: str
) -> None:
    count = len(TURNS) * INTERRUPTIONS
    with requests_cancelled(demo_server, 0, 2 * count):
        heard = converse(python, program, demo_front, TURNS)
    assert len(heard) == len(TURNS)
    for text, turn in zip(TURNS, heard, strict=True):
        assert " ".join(word.strip() for word, _, _ in turn.words).split() == text.split()
        times = [time for _, start, end in turn.words for time in (start, end)]
        assert times == sorted(times), (text, turn.words)
        assert 0 <= times[0] <= times[-1] <= turn.seconds + 0.01, (turn.seconds, turn.words)
    recogniser = Recogniser()
    words = [recogniser.words(turn.samples, SAMPLE_RATE) for turn in heard]
    found = error_rate(TURNS, words)
    assert found <= BOUND, f"word error rate {found:.3f}: {words}"
