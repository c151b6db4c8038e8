"""Speech encoded piece by piece, decoded again."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile

from chatterbox_gateway.encoding import FORMATS, Encoder, encode_file

RATE = 24_000
TONE = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE) * 0.5
SAMPLES = (TONE * 32_767).astype("<i2").tobytes()
LOSSLESS = ("flac", "wav", "pcm")
DELAY = 0.1
"""Seconds by which a lossy codec may move or lengthen the sound."""


def streamed(name: str, size: int = 4_000) -> list[bytes]:
    encoder = Encoder(FORMATS[name], RATE)
    return [*(encoder.encode(SAMPLES[at : at + size]) for at in range(0, len(SAMPLES), size)), encoder.finish()]


def decoded(name: str, file: bytes) -> tuple[np.ndarray, int]:
    """The samples, in [-1, 1], and their rate."""
    if name == "pcm":
        return np.frombuffer(file, dtype="<i2") / 32_768, RATE
    with av.open(io.BytesIO(file)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono")
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]), container.streams.audio[0].rate


def check(name: str, file: bytes) -> None:
    sound, rate = decoded(name, file)
    if name in LOSSLESS:
        assert rate == RATE
        assert sound == pytest.approx(np.frombuffer(SAMPLES, dtype="<i2") / 32_768, abs=1e-6)
        return
    assert len(sound) / rate == pytest.approx(2.0, abs=DELAY)
    middle = sound[rate // 2 : rate]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) / len(middle) * rate == pytest.approx(440, abs=3)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_is_the_sound(name: str) -> None:
    check(name, b"".join(streamed(name)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_the_sound(name: str) -> None:
    check(name, encode_file(FORMATS[name], RATE, SAMPLES))


@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "wav"])
def test_a_file_tells_its_length(name: str) -> None:
    info = soundfile.info(io.BytesIO(encode_file(FORMATS[name], RATE, SAMPLES)))
    assert info.frames / info.samplerate == pytest.approx(2.0, abs=DELAY)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_kept_back_for_long(name: str) -> None:
    total, pieces = len(b"".join(streamed(name))), streamed(name)
    half = len(b"".join(pieces[: len(pieces) // 2]))
    assert half > total * (0.5 - 0.15), f"{half} of {total} bytes after half of the sound"


def test_wav_has_the_plain_header() -> None:
    header = len(b"".join(streamed("wav"))) - len(SAMPLES)
    assert header == len(encode_file(FORMATS["wav"], RATE, SAMPLES)) - len(SAMPLES) == 44


def test_a_piece_without_samples_adds_nothing() -> None:
    encoder = Encoder(FORMATS["pcm"], RATE)
    assert encoder.encode(b"") == b""
    assert encoder.encode(SAMPLES[:100]) + encoder.finish() == SAMPLES[:100]
