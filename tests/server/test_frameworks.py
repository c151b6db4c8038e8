"""Agent frameworks, unmodified, on the gateway: each speaks one sentence through its own OpenAI service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.front import Front

pytestmark = [pytest.mark.server, pytest.mark.full]

PACKAGES = (
    "openai-agents[voice]==0.24.*",
    "livekit-agents==1.8.*",
    "livekit-plugins-openai==1.8.*",
    "pipecat-ai[openai]==1.14.*",
    "litellm==1.110.*",
)

PROGRAMS = {
    "openai-agents": """
from agents.voice import OpenAIVoiceModelProvider
from agents.voice.model import TTSModelSettings
from openai import AsyncOpenAI

async def speak(url):
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        model = OpenAIVoiceModelProvider(openai_client=client).get_tts_model("tts-1")
        return sum([len(piece) async for piece in model.run("Hello from an agent.", TTSModelSettings())])
""",
    "livekit": """
from livekit.plugins import openai

async def speak(url):
    async with openai.TTS(base_url=url, api_key="none").synthesize("Hello from an agent.") as stream:
        return sum([2 * audio.frame.samples_per_channel async for audio in stream])
""",
    "pipecat": """
from pipecat.frames.frames import TTSAudioRawFrame, TTSSpeakFrame
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.tests.utils import run_test

async def speak(url):
    service = OpenAITTSService(api_key="none", base_url=url)
    frames, _ = await run_test(service, frames_to_send=[TTSSpeakFrame("Hello from an agent.")])
    return sum(len(frame.audio) for frame in frames if isinstance(frame, TTSAudioRawFrame))
""",
    "litellm": """
import litellm

async def speak(url):
    options = {"model": "openai/tts-1", "voice": "alloy", "api_base": url, "api_key": "none"}
    return len((await litellm.aspeech(input="Hello from an agent.", **options)).content)
""",
}
"""Each returns the number of bytes of audio."""

MAIN = """
import asyncio, sys
print("bytes:", asyncio.run(speak(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In an environment of its own: 1 GB."""
    folder = tmp_path_factory.mktemp("frameworks")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    program = folder / "bin" / "python"
    install = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    subprocess.run(install, check=True)
    return program


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("framework", PROGRAMS)
def test_a_framework_speaks(python: Path, front: Front, framework: str) -> None:
    program = PROGRAMS[framework] + MAIN
    command = [python, "-W", "ignore", "-c", program, f"http://{front.address}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4_000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("bytes: "))
    assert int(line.removeprefix("bytes: ")) > 2_000
