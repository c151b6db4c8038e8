"""The random numbers of one utterance: all from its seed, and a frame's the same however many frames follow.

Numpy's generator fills its output in order, so a longer draw begins with the shorter one; torch's does not (its normal
draws depend on the number asked for).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HARMONICS = 9
"""The fundamental and eight overtones that the vocoder's source is made of."""

SAMPLES_PER_FRAME = 480

_START, _SOURCE = 0, 1


@dataclass(frozen=True)
class SourceNoise:
    """What is random in the vocoder's source.

    Upstream adds independent noise of one loudness to every harmonic and then sums them with learned weights. A
    weighted sum of independent normal numbers is one normal number, so one per sample is drawn here instead of nine.
    """

    phases: Tensor  # [HARMONICS] radians; the fundamental's is zero
    samples: Tensor  # [SAMPLES_PER_FRAME frames] standard normal


def start_noise(seed: int, frames: int, mel: int) -> Tensor:
    """Where the flow starts: [frames, mel] standard normal float32 on the CPU; prompt first."""
    return torch.from_numpy(_generator(seed, _START).standard_normal((frames, mel), dtype=np.float32))


def source_noise(seed: int, frames: int) -> SourceNoise:
    """The source's phases and noise for that many mel frames, on the CPU."""
    generator = _generator(seed, _SOURCE)
    phases = generator.uniform(-math.pi, math.pi, HARMONICS).astype(np.float32)
    phases[0] = 0.0
    samples = generator.standard_normal(SAMPLES_PER_FRAME * frames, dtype=np.float32)
    return SourceNoise(torch.from_numpy(phases), torch.from_numpy(samples))


def _generator(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**64, purpose])
