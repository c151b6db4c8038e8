"""Which rows go through S3Gen's networks together, and to how many positions they are padded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from chatterbox_engine.kernels.device import upload

_GPU_GRAIN = 64


class Batching:
    """The policy of a device.

    A GPU takes all rows together, padded to a multiple of 64 positions, and has one variant of its kernels, which reads
    the rows' lengths. A CPU takes one row after the other: one keeps its cores busy, and its activations fit into the
    cache (8 utterances of 3 s take 1.2 times as long together, docs/log/s3gen.md).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.together = device.type != "cpu"

    def groups(self, rows: int) -> list[slice]:
        """The rows of a batch that go through the networks together, group after group."""
        return [slice(0, rows)] if self.together else [slice(row, row + 1) for row in range(rows)]

    def size(self, longest: int, steps: int) -> int:
        """Positions that a group outside of all captured buckets is padded to.

        For every new length oneDNN compiles its kernels, which takes 0.1 s and 10 MB, and cuDNN looks for plans. So a
        GPU has multiples of 64, and a CPU at most 2 * `steps` lengths between a power of two and the next.
        """
        step = _GPU_GRAIN if self.together else max(1, 2 ** longest.bit_length() // (2 * steps))
        return math.ceil(longest / step) * step

    def lengths(self, lengths: Sequence[int], size: int) -> Tensor | None:
        """[rows] int64 on the device; None on a CPU when no row is padded."""
        return upload(lengths, self.device) if self.together or set(lengths) != {size} else None
