"""Reference clips for tests, good and bad."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

SUBTYPES = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III", "aiff": "PCM_16"}


def tone(seconds: float, rate: int = 24_000, *, channels: int = 1, pitch: float = 130.0) -> npt.NDArray[np.float32]:
    """A gliding harmonic tone, [n, channels]: voiced, and another one for each pitch."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(pitch + 40 * np.sin(1.9 * time)) / rate
    wave = sum(np.sin(k * phase) / k for k in range(1, 8))
    return np.tile((0.3 * wave / np.abs(wave).max()).astype(np.float32)[:, None], channels)


def encoded(samples: npt.NDArray[Any], rate: int = 24_000, *, kind: str = "wav", subtype: str | None = None) -> bytes:
    """A file of the samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind.upper(), subtype=subtype or SUBTYPES[kind])
    return buffer.getvalue()


def _bomb() -> bytes:
    """An hour of silence: a few hundred kilobytes of FLAC."""
    buffer = io.BytesIO()
    block = np.zeros(1 << 20, dtype=np.int16)
    with soundfile.SoundFile(buffer, "w", 24_000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(83):
            file.write(block)
    return buffer.getvalue()


def _endless() -> bytes:
    """A FLAC file whose header does not say how long it is."""
    clip = bytearray(encoded(tone(1.0), kind="flac"))
    clip[21] &= 0xF0
    clip[22:26] = bytes(4)
    return bytes(clip)


def _half(kind: str) -> bytes:
    whole = encoded(tone(4.0), kind=kind)
    return whole[: len(whole) // 2]


BAD_CLIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"This is a text file, not a clip.\n" * 100, "is damaged, truncated or not a WAV, FLAC, OGG, MP3"),
    "truncated wav": (lambda: _half("wav"), "is truncated"),
    "truncated flac": (lambda: _half("flac"), "is damaged, truncated or not"),
    "truncated ogg": (lambda: _half("ogg"), "holds no samples, or is truncated"),
    "truncated mp3": (lambda: _half("mp3"), "is truncated"),
    "no samples": (lambda: encoded(np.zeros((0, 1))), "holds no samples"),
    "too short": (lambda: encoded(tone(0.3)), r"is 0\.30 seconds long"),
    "silence": (lambda: encoded(np.zeros((48_000, 1))), "is silent"),
    "ten minutes": (lambda: encoded(np.zeros((600 * 8000, 1), np.int16), 8000), r"is 600\.0 seconds long"),
    "too many bytes": (lambda: bytes(40_000_000), r"has 40\.0 MB; at most 33\.6 MB"),
    "1 kHz": (lambda: encoded(tone(2.0, 1000), 1000), "has 1000 samples a second"),
    "64 channels": (lambda: encoded(tone(1.0, channels=64)), "has 64 channels"),
    "not finite": (
        lambda: encoded(np.full((24_000, 1), np.nan, np.float32), subtype="FLOAT"),
        "holds samples that are",
    ),
    "too loud": (lambda: encoded(1e30 * tone(1.0), subtype="FLOAT"), r"holds samples up to 3e\+29"),
    "decompression bomb": (_bomb, r"is 36\d\d\.\d seconds long"),
    "unknown length": (_endless, "does not state its length"),
    "aiff": (lambda: encoded(tone(1.0), kind="aiff"), "is a AIFF file"),
}
"""Each with what the refusal says of it."""
