"""Reading reference clips that anybody may send: measured by their header before they are decoded. No torch."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import re
from dataclasses import dataclass

import numpy as np
import soundfile

from chatterbox_engine.types import Samples
from chatterbox_engine.voices.clip_errors import FORMATS, wrong

CHANNELS = 2
MIN_RATE, MAX_RATE = 8_000, 192_000
MIN_SECONDS = 0.5
"""The shortest clip that the encoders take."""
SILENCE = 1e-3
"""A clip whose loudest sample is below this (-60 dB) holds nothing to learn a voice from."""

LOUDEST = 1e5
"""Floats may lie beyond 1, also on the scale of 16-bit integers; the squares of far larger ones overflow."""

_NAMES = {"WAVEX": "WAV", "RF64": "WAV", **{name: name for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF")}}
"""libsndfile's names of what it reads."""

_TEXT = re.compile(rb"[\t\n\v\f\r\x20-\x7e]+")
_SHORT_DATA = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_STREAMED = 0x7FFF_0000  # programs that write to a pipe state a length near the largest, as they do not know it


@dataclass(frozen=True)
class ClipLimits:
    """What a clip may cost at most."""

    max_bytes: int = 32 << 20
    max_seconds: float = 120.0


class _File(io.BytesIO):
    """libsndfile seeks to places before the start of some damaged files; where it then is tells it that it cannot."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with contextlib.suppress(ValueError):
            super().seek(offset, whence)
        return self.tell()


def read_clip(data: bytes, limits: ClipLimits) -> tuple[Samples, int]:
    """The samples of an encoded clip, [n] float32, channels averaged, and their rate.

    Raises InvalidRequest, saying what is wrong, for what is no file of FORMATS, is beyond `limits`, has a rate or
    number of channels that no voice recording has, is truncated, silent, shorter than MIN_SECONDS or not finite. What
    the header says is checked first; not more is decoded than that, or, where it states no length, than the limit.
    """
    if not data:
        raise wrong("is empty")
    check_bytes(len(data), limits)
    _check_end(data)
    try:
        with soundfile.SoundFile(_File(data)) as file:
            if not file.frames and _NAMES.get(file.format) == "WAV":  # as programs that write to a pipe leave it
                mono, rate = _read_recording(data, limits)
            else:
                mono, rate = _read(file, limits), int(file.samplerate)
    except soundfile.LibsndfileError:
        mono, rate = _read_recording(data, limits)
    _check_samples(mono)
    return mono, rate


def _read(file: soundfile.SoundFile, limits: ClipLimits) -> Samples:
    _check_header(file, limits)
    samples = file.read(file.frames, dtype="float32", always_2d=True)
    if file.frames - len(samples) > file.samplerate // 10:  # an MP3's length is an estimate
        raise wrong(f"is truncated: it should hold {file.frames} samples and holds {len(samples)}")
    mono: Samples = samples.mean(axis=1)
    return mono


def _read_recording(data: bytes, limits: ClipLimits) -> tuple[Samples, int]:
    """What libsndfile does not know, or not in this form."""
    from chatterbox_engine.voices.recordings import decode  # FFmpeg's libraries

    def check(rate: int, channels: int, seconds: float | None) -> None:
        _check_form(rate, channels)
        if seconds is not None:
            _check_length(seconds, limits)

    samples, rate = decode(data, check, limits.max_seconds)
    if not len(samples):
        raise wrong("holds no samples, or is truncated")
    _check_length(len(samples) / rate, limits)
    return samples, rate


def clip_bytes(sent: bytes) -> bytes:
    """A clip as it was sent. JSON cannot carry bytes: what is text, as no audio file is, must be base64 or a `data:`
    URI of it, with or without line breaks. Raises InvalidRequest when it is not."""
    if not _TEXT.fullmatch(sent):
        return sent
    text = b"".join(line.strip() for line in sent.splitlines())
    if text[:5].lower() == b"data:":
        head, comma, rest = text.partition(b",")
        text = rest.strip()
        if not comma or not head.lower().endswith(b";base64"):
            raise wrong("is a data: URI that is not base64")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise wrong(f"is text that is not base64: {error}") from error


def check_bytes(size: int, limits: ClipLimits) -> None:
    """Raises InvalidRequest for a clip of too many bytes."""
    if size > limits.max_bytes:
        raise wrong(f"has {size / 1e6:.1f} MB; at most {limits.max_bytes / 1e6:.1f} MB are taken")


def _check_end(data: bytes) -> None:
    """Finds what neither library notices: an Ogg file that ends within a page, a CAF file that ends within a chunk."""
    if data.startswith(b"OggS"):
        page = data[data.rfind(b"OggS") :]
        segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
        end = 27 + len(segments) + sum(segments)
        if not segments or len(page) < end:
            raise wrong("is truncated: it ends within a page")
    elif data.startswith(b"caff"):
        end = 8
        while 0 <= end < len(data) - 12:
            size = int.from_bytes(data[end + 4 : end + 12], "big", signed=True)
            end = end + 12 + size if size >= 0 else -1  # the last one may have no size
        if end > len(data):
            raise wrong("is truncated: it ends within a chunk")


def _check_header(file: soundfile.SoundFile, limits: ClipLimits) -> None:
    if file.format not in _NAMES:
        raise wrong(f"is a {file.format} file; it must be one of {', '.join(FORMATS)}")
    _check_form(file.samplerate, file.channels)
    if not file.seekable() or file.frames >= np.iinfo(np.int64).max:
        raise wrong("does not state its length")
    if not file.frames:
        raise wrong("holds no samples, or is truncated")
    short = _SHORT_DATA.search(file.extra_info)  # libsndfile reads what is there of a WAV or AIFF, and notes the rest
    if short and int(short[2]) < int(short[1]) < _STREAMED:
        raise wrong(f"is truncated: it should hold {short[1]} bytes of samples and holds {short[2]}")
    _check_length(file.frames / file.samplerate, limits)


def _check_form(rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise wrong(f"has {rate} samples a second; it must have {MIN_RATE} to {MAX_RATE}")
    if channels > CHANNELS:
        raise wrong(f"has {channels} channels; it may have {CHANNELS}")


def _check_length(seconds: float, limits: ClipLimits) -> None:
    if seconds > limits.max_seconds:
        raise wrong(f"is {seconds:.1f} seconds long; at most {limits.max_seconds:g} seconds are taken")
    if seconds < MIN_SECONDS:
        raise wrong(f"is {seconds:.2f} seconds long; at least {MIN_SECONDS} seconds are needed")


def _check_samples(samples: Samples) -> None:
    if not np.isfinite(samples).all():
        raise wrong("holds samples that are not finite")
    peak = float(np.abs(samples).max())
    if peak < SILENCE:
        raise wrong("is silent")
    if peak > LOUDEST:
        raise wrong(f"holds samples up to {peak:.0e}; full scale is 1")
