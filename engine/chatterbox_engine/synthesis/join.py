"""Segments of one request into one waveform."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chatterbox_engine.types import SAMPLE_RATE, Samples

FADE = SAMPLE_RATE // 200
"""Samples, 5 ms: long enough to avoid clicks, too short to be audible as a fade."""


def pause_samples(seconds: float) -> int:
    """Samples of silence for a pause."""
    return round(seconds * SAMPLE_RATE)


def join(parts: Sequence[Samples], pauses: Sequence[float]) -> Samples:
    """Concatenates segments with `pauses[i]` seconds of silence after segment i; the last pause is ignored.

    Every inner edge fades to silence over 5 ms. A single segment is returned unchanged.
    """
    if len(parts) == 1:
        return parts[0]
    joined: list[Samples] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        joined.append(fade_edges(part, start=index > 0, end=not last))
        if not last:
            joined.append(np.zeros(pause_samples(pauses[index]), dtype=np.float32))
    return np.concatenate(joined)


def fade_edges(part: Samples, *, start: bool, end: bool) -> Samples:
    """A copy of a segment whose inner edges fade to silence."""
    part = part.copy()
    length = min(FADE, len(part))
    ramp = np.linspace(0, 1, length, endpoint=False, dtype=np.float32)
    if start:
        part[:length] *= ramp
    if end and length:
        part[-length:] *= ramp[::-1]
    return part
