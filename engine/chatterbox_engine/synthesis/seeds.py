"""One seed a request, one independent stream of random numbers for each use of it."""

from __future__ import annotations

import numpy as np

T3_DRAWS = 0
VOCODER_NOISE = 1
AGAIN = 1000
"""T3's draws when a segment is spoken again: this one and the following, one each time."""


def derive(seed: int, segment: int, use: int) -> int:
    """A 63-bit seed for one use in one segment (numpy's SeedSequence: stable across versions)."""
    state = np.random.SeedSequence([seed & 0xFFFF_FFFF_FFFF_FFFF, segment, use]).generate_state(1, np.uint64)
    return int(state[0]) >> 1
