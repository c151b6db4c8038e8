"""The two speaker encoders, which are not trained.

The voice encoder is a random LSTM of few live units: enough to tell two synthetic voices apart, and zeros pack
away. The x-vector network is all zeros, so that S3Gen's speaker is a constant: the voice is in tokens and prompt.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from chatterbox_engine.checkpoint import layout
from chatterbox_engine.checkpoint.random_checkpoint import _states
from tools.demo_voice.sizes import DIMS

LIVE_UNITS = 32
_HIDDEN = 256


def voice_encoder() -> dict[str, Tensor]:
    """Random weights, all but those among the first `LIVE_UNITS` of each layer zero."""
    states = _states(layout.voice_encoder_layout(DIMS.t3), seed=9)
    for name, tensor in states.items():
        if re.search("lstm", name):
            gates = tensor.unflatten(0, (4, _HIDDEN))
            gates[:, LIVE_UNITS:] = 0.0
            if tensor.ndim == 2 and tensor.shape[1] == _HIDDEN:
                tensor[:, LIVE_UNITS:] = 0.0
                tensor.mul_((_HIDDEN / LIVE_UNITS) ** 0.5)
        elif name == "proj.weight":
            tensor[:, LIVE_UNITS:] = 0.0
            tensor.mul_((_HIDDEN / LIVE_UNITS) ** 0.5)
    return states


def x_vector() -> dict[str, Tensor]:
    """Zeros, but for the norms' variances."""
    shapes = {name: shape for name, shape in layout.s3gen_layout(DIMS).items() if name.startswith("speaker_encoder.")}
    return {
        name: torch.zeros(shape, dtype=torch.int64 if name.endswith("tracked") else torch.float32)
        + (1 if name.endswith("running_var") else 0)
        for name, shape in shapes.items()
    }
