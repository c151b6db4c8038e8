"""Audio changed and encoded piece by piece, decoded again."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from chatterbox_client import InvalidRequest
from chatterbox_gateway.output import FORMATS, Encoder, Output, encode_file

RATE = 24_000
TONE = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE) * 0.5
SAMPLES = (TONE * 32_767).astype("<i2").tobytes()
LOSSLESS = ("flac", "wav", "pcm")
DELAY = 0.1
"""Seconds by which a lossy codec may move or lengthen the sound."""


def streamed(name: str, size: int = 4_000, **output: Any) -> list[bytes]:
    encoder = Encoder(Output(name, **output), RATE)
    return [*(encoder.encode(SAMPLES[at : at + size]) for at in range(0, len(SAMPLES), size)), encoder.finish()]


def decoded(name: str, file: bytes, raw_rate: int = RATE) -> tuple[np.ndarray, int]:
    """The samples, in [-1, 1], and their rate. raw_rate: that of a format that does not say it."""
    if name == "pcm":
        return np.frombuffer(file, dtype="<i2") / 32_768, raw_rate
    raw = {"ulaw": "mulaw", "alaw": "alaw"}.get(name)
    options = {"sample_rate": str(raw_rate)} if raw else {}
    with av.open(io.BytesIO(file), format=raw, options=options) as container:
        resampler = av.AudioResampler(format="flt", layout="mono")
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]), container.streams.audio[0].rate


def check(name: str, file: bytes) -> None:
    sound, rate = decoded(name, file, FORMATS[name].sample_rate or RATE)
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
    check(name, encode_file(Output(name), RATE, SAMPLES))


@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "wav"])
def test_a_file_tells_its_length(name: str) -> None:
    info = soundfile.info(io.BytesIO(encode_file(Output(name), RATE, SAMPLES)))
    assert info.frames / info.samplerate == pytest.approx(2.0, abs=DELAY)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_kept_back_for_long(name: str) -> None:
    total, pieces = len(b"".join(streamed(name))), streamed(name)
    half = len(b"".join(pieces[: len(pieces) // 2]))
    assert half > total * (0.5 - 0.15), f"{half} of {total} bytes after half of the sound"


def test_wav_has_the_plain_header() -> None:
    header = len(b"".join(streamed("wav"))) - len(SAMPLES)
    assert header == len(encode_file(Output("wav"), RATE, SAMPLES)) - len(SAMPLES) == 44


def test_a_piece_without_samples_adds_nothing() -> None:
    encoder = Encoder(Output("pcm"), RATE)
    assert encoder.encode(b"") == b""
    assert encoder.encode(SAMPLES[:100]) + encoder.finish() == SAMPLES[:100]


def rates() -> list[tuple[str, int]]:
    return [(name, rate) for name in FORMATS for rate in (FORMATS[name].rates or (8_000, 16_000, 22_050, 48_000))]


def pitch(sound: np.ndarray, rate: int) -> float:
    """In Hz, of the middle of the sound."""
    middle = sound[len(sound) // 4 : -len(sound) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    return float(np.argmax(spectrum) / len(middle) * rate)


@pytest.mark.parametrize(("name", "rate"), rates())
def test_every_format_has_its_rates(name: str, rate: int) -> None:
    file = b"".join(streamed(name, sample_rate=rate))
    sound, played = decoded(name, file, rate)
    assert played == (48_000 if name == "opus" else rate)  # Opus is always decoded at 48 kHz
    assert len(sound) / played == pytest.approx(2.0, abs=0.2)
    assert pitch(sound, played) == pytest.approx(440, abs=3)


@pytest.mark.parametrize("rate", [8_000, 11_025, 48_000])
def test_a_stream_is_resampled_as_the_whole_is(rate: int) -> None:
    whole = np.frombuffer(encode_file(Output("pcm", rate), RATE, SAMPLES), dtype="<i2").astype(int)
    for size in (200, 4_000, 10_002):
        pieces = np.frombuffer(b"".join(streamed("pcm", size, sample_rate=rate)), dtype="<i2").astype(int)
        assert len(pieces) == len(whole) == 2 * rate
        assert np.abs(pieces - whole).max() <= 2  # soxr dithers


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.5, 0.75, 1.5, 2.0, 3.0, 4.0])
def test_another_speed_keeps_the_pitch(speed: float) -> None:
    whole = encode_file(Output("pcm", speed=speed), RATE, SAMPLES)
    assert b"".join(streamed("pcm", speed=speed)) == whole
    sound, _ = decoded("pcm", whole)
    assert len(sound) / RATE == pytest.approx(2.0 / speed, abs=0.001)
    assert pitch(sound, RATE) == pytest.approx(440, abs=6)


def test_another_speed_is_not_kept_back_for_long() -> None:
    pieces = streamed("pcm", speed=0.5)
    half = len(b"".join(pieces[: len(pieces) // 2]))
    assert half > len(b"".join(pieces)) * 0.4


def test_speed_and_rate_together() -> None:
    file = encode_file(Output("ulaw", speed=2.0), RATE, SAMPLES)
    assert len(file) == 8_000


def test_rates_that_a_format_does_not_have_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="sample_rate is 22050; opus has 8000, 12000, 16000, 24000, 48000"):
        Output("opus", 22_050)


@pytest.mark.parametrize("name", ["wav", "flac"])
@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_silence_is_a_file_too(name: str, speed: float) -> None:
    encoder = Encoder(Output(name, speed=speed), RATE)
    for file in (encoder.encode(b"") + encoder.finish(), encode_file(Output(name, speed=speed), RATE, b"")):
        assert soundfile.info(io.BytesIO(file)).samplerate == RATE


@pytest.mark.parametrize(("name", "rate"), rates())
def test_a_stream_has_the_length_and_the_samples_of_the_whole_file(name: str, rate: int) -> None:
    stream, played = decoded(name, b"".join(streamed(name, sample_rate=rate)), rate)
    whole, _ = decoded(name, encode_file(Output(name, rate), RATE, SAMPLES), rate)
    assert len(stream) == pytest.approx(len(whole), abs=2 * DELAY * played), "two frames of MP3 at 8 kHz"
    # the head of a whole MP3 file tells its player to leave the encoder's delay out: more than two periods of the tone
    moved = [stream[played // 4 + lag : played + lag] for lag in range(played // 200)]
    middle = whole[played // 4 : played]
    assert min(np.sqrt(np.mean((part - middle) ** 2)) for part in moved) < 0.12 * np.sqrt(np.mean(middle**2))
