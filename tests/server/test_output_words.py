"""What the gateway makes of the demo voice, by format and speed: a recogniser finds the same words."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import soundfile
import soxr

import chatterbox_engine
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_gateway.output import Output, encode_file
from tests.server.front import Front
from tools.demo_voice.held_out import SENTENCES
from tools.demo_voice.recogniser import Recogniser, error_rate

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(1800)]

TEXTS = SENTENCES[:6]
CLIP = Path(chatterbox_engine.__file__).parent / "demo_voice" / "bass.flac"
RATE = 24_000
TELEPHONE = 8_000
LOST = 0.15
"""Share of words that a codec may cost."""
SPEEDS = {0.5: 0.15, 1.5: 0.22, 2.0: 0.33}
"""And that a speed and the way back from it may: 0.15 and 0.26 at 1.5 and 2, where short sounds are left out twice."""
RAW = {"pcm": ("s16le", RATE), "ulaw": ("mulaw", TELEPHONE), "alaw": ("alaw", TELEPHONE)}

Sound = tuple[np.ndarray, int]
"""Samples and their rate."""


@pytest.fixture(scope="module")
def demo_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("demo")
    options = ServerOptions(environment={"CHATTERBOX_CHECKPOINT": "demo"}, log=folder / "triton.log")
    with TritonServer(options) as server, Front(server.grpc_url, folder / "front.log") as front:
        yield front


def errors(sounds: list[Sound]) -> float:
    """Share of the texts' words that a recogniser misses. It adapts to its input, so each list has its own."""
    recogniser = Recogniser()
    return error_rate(TEXTS, [recogniser.words(samples, rate) for samples, rate in sounds])


def speak(front: Front, text: str, name: str, **fields: Any) -> bytes:
    body = {"input": text, "seed": 1, "response_format": name, "stream": False, **fields}
    answer = httpx.post(f"http://{front.address}/v1/audio/speech", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    return answer.content


def decoded(name: str, file: bytes) -> Sound:
    """The sound of a file."""
    format, rate = RAW.get(name, (None, None))
    options = {"sample_rate": str(rate)} if rate else {}
    with av.open(io.BytesIO(file), format=format, options=options) as container:
        resampler = av.AudioResampler(format="flt", layout="mono")
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]), container.streams.audio[0].rate


def telephone(samples: np.ndarray) -> np.ndarray:
    """Speech as a telephone without a codec carries it."""
    return soxr.resample(samples, RATE, TELEPHONE, quality="HQ")


@pytest.fixture(scope="module")
def plain(demo_front: Front) -> list[np.ndarray]:
    """The texts without a codec."""
    return [decoded("pcm", speak(demo_front, text, "pcm"))[0] for text in TEXTS]


@pytest.mark.parametrize("name", ["flac", "wav"])
def test_a_format_without_losses_has_the_samples(demo_front: Front, plain: list[np.ndarray], name: str) -> None:
    for text, samples in zip(TEXTS, plain, strict=True):
        assert decoded(name, speak(demo_front, text, name))[0] == pytest.approx(samples, abs=1e-6)


@pytest.mark.parametrize("name", ["mp3", "opus", "aac"])
def test_a_format_has_the_words(demo_front: Front, plain: list[np.ndarray], name: str) -> None:
    heard = errors([decoded(name, speak(demo_front, text, name)) for text in TEXTS])
    without = errors([(samples, RATE) for samples in plain])
    assert heard <= without + LOST, f"word error rate {heard:.3f}, {without:.3f} without the codec"


@pytest.mark.parametrize("name", ["ulaw", "alaw"])
def test_a_telephone_s_codec_has_the_words_that_its_band_leaves(
    demo_front: Front, plain: list[np.ndarray], name: str
) -> None:
    """The recogniser knows only wide speech: what it loses by the narrow band is not the codec's."""
    sounds = []
    for text, samples in zip(TEXTS, plain, strict=True):
        file, narrow = speak(demo_front, text, name), telephone(samples)
        assert len(file) == pytest.approx(len(narrow), abs=2)
        sounds.append(decoded(name, file))
        length = min(len(narrow), len(file))
        noise = np.mean((narrow[:length] - sounds[-1][0][:length]) ** 2)
        assert 10 * np.log10(np.mean(narrow**2) / noise) > 28, "dB; G.711 has about 36"
    heard, without = errors(sounds), errors([(telephone(samples), TELEPHONE) for samples in plain])
    assert heard <= without + LOST, f"word error rate {heard:.3f}, {without:.3f} without the codec"


def test_sox_decodes_mu_law(demo_front: Front, tmp_path: Path) -> None:
    if shutil.which("sox") is None:
        pytest.skip("sox is not installed")
    (tmp_path / "speech.ul").write_bytes(file := speak(demo_front, TEXTS[0], "ulaw"))
    command = [
        "sox",
        "-t",
        "ul",
        "-r",
        str(TELEPHONE),
        tmp_path / "speech.ul",
        "-t",
        "raw",
        "-e",
        "signed",
        "-b",
        "16",
        "-",
    ]
    sound = subprocess.run(command, check=True, capture_output=True).stdout
    assert np.frombuffer(sound, "<i2") / 32_768 == pytest.approx(decoded("ulaw", file)[0], abs=1e-4)


@pytest.mark.parametrize("speed", SPEEDS)
def test_another_speed_has_its_length_and_the_words(demo_front: Front, plain: list[np.ndarray], speed: float) -> None:
    """The recogniser knows only speech of the usual speed: so the speech is brought back to it."""
    back = []
    for text, samples in zip(TEXTS, plain, strict=True):
        file = speak(demo_front, text, "pcm", speed=speed)
        assert len(file) / 2 == pytest.approx(len(samples) / speed, rel=0.02)
        back.append(decoded("pcm", encode_file(Output("pcm", speed=1 / speed), RATE, file)))
    heard, without = errors(back), errors([(samples, RATE) for samples in plain])
    assert heard <= without + SPEEDS[speed], f"word error rate {heard:.3f}, {without:.3f} at the usual speed"


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_clear_voice_has_the_same_words_at_another_speed(speed: float) -> None:
    """The demo voice's source, which is clearer than the demo voice: what the recogniser makes of it without a filter,
    and of it sped up and brought back."""
    samples, rate = soundfile.read(CLIP, dtype="float32")
    samples = soxr.resample(samples, rate, RATE)
    whole = (samples.clip(-1, 1) * 32_767).astype("<i2").tobytes()
    faster = encode_file(Output("pcm", speed=speed), RATE, whole)
    back = decoded("pcm", encode_file(Output("pcm", speed=1 / speed), RATE, faster))
    wanted, heard = Recogniser().words(samples, RATE), Recogniser().words(*back)
    found = error_rate([" ".join(wanted)], [heard])
    assert found <= 0.25, f"{found:.2f} of the words differ: {wanted}, {heard}"


def test_a_time_of_the_day_is_understood_through_the_gateway(demo_front: Front) -> None:
    """In one of two lines: the voice is a miniature."""
    lines = ("She came home at 10:30, and he was late.", "The train leaves at 10:30 in the morning.")
    recogniser = Recogniser()
    heard = [
        " ".join(recogniser.words(*decoded("pcm", speak(demo_front, line, "pcm", text_normalization="spoken"))))
        for line in lines
    ]
    assert any("ten thirty" in words for words in heard), heard
