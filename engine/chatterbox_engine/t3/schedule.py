"""How many tokens of a block each pass keeps. Source: chatterbox-flash 0.1.0 `model.py`. Imports no torch."""

from __future__ import annotations

import functools

import numpy as np

MAX_STEPS = 32
"""Passes of a block at most."""


@functools.lru_cache(maxsize=1024)
def counts(tokens: int, steps: int, shift: float) -> tuple[int, ...]:
    """Tokens that each of `steps` passes keeps at least, `tokens` in all.

    By the end of the share s of the passes, the share shift * s / (1 + (shift - 1) * s) of the tokens is kept
    (OmniVoice, equation 3); the last pass keeps what is left. shift 0: the same number in each.
    """
    if shift <= 0:
        return (*[tokens // steps] * (steps - 1), tokens - tokens // steps * (steps - 1))
    kept, each = 0, []
    for step in range(1, steps):
        share = step / steps
        target = round(tokens * (shift * share / (1.0 + (shift - 1.0) * share)))
        each.append(min(max(0, target - kept), tokens - kept))
        kept += each[-1]
    return (*each, tokens - kept)


def quantile(masked: int, step: int, steps: int, tau: float) -> tuple[int, int, float]:
    """Where among the ascending scores of `masked` unknown tokens lies the score from which on they are kept: the
    indices of the two around it, and the weight of the second. In float32, as `torch.quantile`."""
    rank = np.float32(max(0.0, 1.0 - tau * (step + 1) / steps)) * np.float32(masked - 1)
    below = int(rank)
    return below, int(np.ceil(rank)), float(rank - np.float32(below))
