"""The tensors of keys and values: one pool of positions per layer, handed out in extents (`extents`)."""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox_engine.checkpoint.dims import T3Dims
from chatterbox_engine.t3.extents import GRAIN, Extent

SPLIT_PAIRS = 1024
"""Maximum number of pairs of row and head for which a GPU splits a row over several programs (`attention_cuda`)."""


class KVCache:
    """The pool's tensors: [layers, 2, positions + GRAIN, heads, head_dim], static for the life of the engine.

    The last GRAIN positions are scratch: padding rows of a captured graph write there.
    """

    def __init__(self, dims: T3Dims, positions: int, *, device: torch.device, dtype: torch.dtype) -> None:
        positions = positions // GRAIN * GRAIN
        self.scratch = positions
        shape = (dims.layers, 2, positions + GRAIN, dims.heads, dims.head_dim)
        # empty, not zeros: a CPU then commits only pages that are used; every position is written before it is read
        self.data = torch.empty(shape, device=device, dtype=dtype)
        # number of finished splits of each pair; zero between steps
        self.arrived = torch.zeros(SPLIT_PAIRS, device=device, dtype=torch.int32)

    def fill(self, extent: Extent, prefix: Tensor) -> None:
        """Copies keys and values [layers, 2, n, heads, head_dim] to the start of an extent."""
        self.data[:, :, extent.start : extent.start + prefix.shape[2]] = prefix


def bytes_per_position(dims: T3Dims, dtype: torch.dtype) -> int:
    """Memory of one position of one row over all layers."""
    return dims.layers * 2 * dims.heads * dims.head_dim * dtype.itemsize
