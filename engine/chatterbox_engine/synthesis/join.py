"""Segments of one request into one waveform."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chatterbox_engine.types import SAMPLE_RATE, Samples

FADE = SAMPLE_RATE // 200
"""Samples, 5 ms: long enough to avoid clicks, too short to be audible as a fade."""


def join(parts: Sequence[Samples], pauses: Sequence[float], lead: float = 0.0) -> Samples:
    """Concatenates segments with `pauses[i]` seconds of silence after segment i, and `lead` seconds before the first.

    Every edge at another segment or at silence fades over 5 ms. A single segment without silence is returned unchanged.
    """
    if len(parts) == 1 and not lead and not pauses[0]:
        return parts[0]
    joined: list[Samples] = [silence(lead)]
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        joined.append(fade_edges(part, start=index > 0 or lead > 0, end=not last or pauses[index] > 0))
        joined.append(silence(pauses[index]))
    return np.concatenate(joined)


def silence(seconds: float) -> Samples:
    """A pause."""
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)


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
