"""Reading reference clips that anybody may send: measured by their header before they are decoded. No torch."""

from __future__ import annotations

import base64
import binascii
import io
import re
from dataclasses import dataclass

import numpy as np
import soundfile

from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.types import Samples

FORMATS = ("WAV", "FLAC", "OGG", "MP3")
CHANNELS = 2
MIN_RATE, MAX_RATE = 8_000, 192_000
MIN_SECONDS = 0.5
"""The shortest clip that the encoders take."""
SILENCE = 1e-3
"""A clip whose loudest sample is below this (-60 dB) holds nothing to learn a voice from."""

LOUDEST = 1e5
"""Floats may lie beyond 1, also on the scale of 16-bit integers; the squares of far larger ones overflow."""

_NAMES = {"WAVEX": "WAV", "RF64": "WAV", **{name: name for name in FORMATS}}
_SHORT_DATA = re.compile(r"^\s*data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_STREAMED = 0x7FFF_0000  # programs that write to a pipe state a length near the largest, as they do not know it


@dataclass(frozen=True)
class ClipLimits:
    """What a clip may cost at most."""

    max_bytes: int = 32 << 20
    max_seconds: float = 120.0


def read_clip(data: bytes, limits: ClipLimits) -> tuple[Samples, int]:
    """The samples of an encoded clip, [n] float32, channels averaged, and their rate.

    Raises InvalidRequest, saying what is wrong, for what is no WAV, FLAC, OGG or MP3 file, is beyond `limits`, has a
    rate or number of channels that no voice recording has, is truncated, silent, shorter than MIN_SECONDS or not
    finite. What the header says is checked first, and no more than that is decoded.
    """
    if not data:
        raise _wrong("is empty")
    check_bytes(len(data), limits)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, limits)
            frames = file.frames
            samples = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _wrong(f"is damaged, truncated or not a {', '.join(FORMATS)} file ({error.error_string})") from error
    if frames - len(samples) > file.samplerate // 10:  # an MP3's length is an estimate
        raise _wrong(f"is truncated: it should hold {frames} samples and holds {len(samples)}")
    mono: Samples = samples.mean(axis=1)
    _check_samples(mono)
    return mono, int(file.samplerate)


def clip_bytes(sent: bytes) -> bytes:
    """A clip as it was sent: JSON cannot carry bytes, so what is base64 throughout, as no audio file is, is decoded."""
    try:
        return base64.b64decode(sent, validate=True)
    except binascii.Error:
        return sent


def check_bytes(size: int, limits: ClipLimits) -> None:
    """Raises InvalidRequest for a clip of too many bytes."""
    if size > limits.max_bytes:
        raise _wrong(f"has {size / 1e6:.1f} MB; at most {limits.max_bytes / 1e6:.1f} MB are taken")


def _check_header(file: soundfile.SoundFile, limits: ClipLimits) -> None:
    if file.format not in _NAMES:
        raise _wrong(f"is a {file.format} file; it must be one of {', '.join(FORMATS)}")
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise _wrong(f"has {file.samplerate} samples a second; it must have {MIN_RATE} to {MAX_RATE}")
    if file.channels > CHANNELS:
        raise _wrong(f"has {file.channels} channels; it may have {CHANNELS}")
    if not file.seekable() or file.frames >= np.iinfo(np.int64).max:
        raise _wrong("does not state its length")
    if not file.frames:
        raise _wrong("holds no samples, or is truncated")
    seconds = file.frames / file.samplerate
    if seconds > limits.max_seconds:
        raise _wrong(f"is {seconds:.1f} seconds long; at most {limits.max_seconds:g} seconds are taken")
    short = _SHORT_DATA.search(file.extra_info)  # libsndfile reads what is there of a WAV and only notes the rest
    if short and int(short[2]) < int(short[1]) < _STREAMED:
        raise _wrong(f"is truncated: it should hold {short[1]} bytes of samples and holds {short[2]}")
    if seconds < MIN_SECONDS:
        raise _wrong(f"is {seconds:.2f} seconds long; at least {MIN_SECONDS} seconds are needed")


def _check_samples(samples: Samples) -> None:
    if not np.isfinite(samples).all():
        raise _wrong("holds samples that are not finite")
    peak = float(np.abs(samples).max())
    if peak < SILENCE:
        raise _wrong("is silent")
    if peak > LOUDEST:
        raise _wrong(f"holds samples up to {peak:.0e}; full scale is 1")


def _wrong(what: str) -> InvalidRequest:
    return InvalidRequest(f"the reference audio {what}")
