"""Encoded audio, for callers that want a file instead of a tensor."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from chatterbox_engine.types import SAMPLE_RATE, Samples

_FILES = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}

BLOCK = 65_536
"""Samples per write: libsndfile 1.2 overflows its stack when it is given minutes of Vorbis at once."""

FORMATS = ("pcm", "s16", *_FILES)
"""Values of a request's `format`; `pcm` is the float tensor and never encoded."""


def to_s16(samples: Samples) -> bytes:
    """Samples [n] in [-1, 1] as little-endian 16-bit integers, no header."""
    return np.round(np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes()


def encode(samples: Samples, audio_format: str) -> bytes:
    """Samples [n] as a whole file of the format, or raw 16-bit samples for `s16`."""
    if audio_format == "s16":
        return to_s16(samples)
    buffer = io.BytesIO()
    subtype = _FILES[audio_format]
    with soundfile.SoundFile(buffer, "w", SAMPLE_RATE, 1, format=audio_format.upper(), subtype=subtype) as file:
        for start in range(0, len(samples), BLOCK):
            file.write(samples[start : start + BLOCK])
    return buffer.getvalue()
