"""The random numbers of utterances: each is a function of its utterance's seed and of its index, and of nothing else.

So a frame's noise does not depend on how many frames follow, and a window in the middle of an utterance draws its part
without the frames before it. All rows of a batch are drawn at once, on the device. The numbers are those of
`kernels.draws`, made normal two by two (Box and Muller 1958).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox_engine.kernels.device import upload
from chatterbox_engine.kernels.draws import STEP, fraction, mixed, signed

HARMONICS = 9
"""The fundamental and eight overtones that the vocoder's source is made of."""

SAMPLES_PER_FRAME = 480

_START, _SAMPLES, _PHASES = 0, 1, 2


@dataclass(frozen=True)
class SourceNoise:
    """What is random in the vocoder's source.

    Upstream adds independent noise of one loudness to every harmonic and then sums them with learned weights. A
    weighted sum of independent normal numbers is one normal number, so one per sample is drawn here instead of nine.
    """

    phases: Tensor  # [rows, HARMONICS] radians; the fundamental's is zero
    samples: Tensor  # [rows, SAMPLES_PER_FRAME frames] standard normal


@dataclass
class Phase:
    """Where an utterance's source is at the end of the chunk before; one for all chunks of the utterance."""

    cycles: Tensor | None = None  # [] float64 on the device, of the fundamental, modulo one; None at the start


def start_noise(seeds: Sequence[int], frames: Tensor, mel: int) -> Tensor:
    """Where the flow starts: [rows, n, mel] standard normal float32.

    frames: [rows, n] int64, which frame of its utterance, prompt first, each is; mel: an even number.
    """
    keys = _keys(seeds, _START, frames.device)
    pairs = torch.arange(mel // 2, device=frames.device)
    return _normal(keys[:, None, None], frames[..., None] * (mel // 2) + pairs)


def source_noise(seeds: Sequence[int], first: Sequence[int], frames: int, device: torch.device) -> SourceNoise:
    """The source's phases and noise for that many mel frames. first: the frame of its utterance, without the prompt,
    that each row begins with."""
    pairs = SAMPLES_PER_FRAME // 2
    places = upload(first, device)[:, None] * pairs + torch.arange(pairs * frames, device=device)
    samples = _normal(_keys(seeds, _SAMPLES, device)[:, None], places)
    turns = fraction(mixed(_keys(seeds, _PHASES, device)[:, None] + STEP * torch.arange(HARMONICS, device=device)))
    phases = math.pi * (2.0 * turns - 1.0)
    phases[:, 0].zero_()
    return SourceNoise(phases, samples)


def _keys(seeds: Sequence[int], purpose: int, device: torch.device) -> Tensor:
    """Where each row's numbers for one purpose begin: [rows] int64."""
    return mixed(upload([signed(seed + (purpose + 1) * STEP) for seed in seeds], device))


def _normal(keys: Tensor, pairs: Tensor) -> Tensor:
    """Standard normal float32 numbers, two for each place: [..., n] to [..., 2 n]."""
    bits = mixed(keys + STEP * pairs)
    radius = torch.sqrt(-2.0 * torch.log(1.0 - fraction(bits >> 40)))
    angle = 2 * math.pi * fraction(bits)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(-2)
