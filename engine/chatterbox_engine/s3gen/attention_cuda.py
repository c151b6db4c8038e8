"""Triton kernel of the flow's attention: every position of a row attends to all of the row, without its padding.

torch's fast attention kernels support no mask, and the one that does has half their speed. Here the loop
over the keys ends with the row, so padding costs nothing. The method is FlashAttention-2 (arXiv 2307.08691).

`TRITON_INTERPRET=1` runs the kernel on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatterbox_engine.kernels.tiles_cuda import add_tile


class Tiles(NamedTuple):
    """Tile sizes of a launch."""

    queries: int
    """Per program."""
    keys: int
    """Per iteration of its loop."""
    warps: int
    stages: int
    """Number of iterations whose keys are prefetched."""


TILES = {2: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3)), 4: (Tiles(32, 32, 8, 2),) * 2}
"""By the bytes per number, for many programs and for few. With two bytes, 64 KiB of shared memory and 111 registers on
compute capability 9 (181 on 8.0): two programs of eight warps share a multiprocessor."""

FEW_PROGRAMS = 400
"""Programs with the larger tiles below which the smaller ones are used: three per multiprocessor of a large GPU."""


# The code is the same for all numbers of positions, but would be compiled again at the first multiple of 16.
@triton.jit(do_not_specialize=("positions",))
def _attend_kernel(  # type: ignore[no-untyped-def]
    qkv,
    lengths,
    out,
    positions,
    scale,  # of the scores, to base 2
    heads: tl.constexpr,
    size: tl.constexpr,
    queries: tl.constexpr,
    keys: tl.constexpr,
    precision: tl.constexpr,
):
    first = tl.program_id(0) * queries
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)  # 2^31 elements are 40 rows of 30,000 positions
    length = tl.load(lengths + row).to(tl.int32)
    # programs after the row's end return at once
    end = tl.where(first < length, length, 0)

    lane = tl.arange(0, size)
    query = first + tl.arange(0, queries)
    key = tl.arange(0, keys)
    step: tl.constexpr = 3 * heads * size
    here = qkv + row * positions * step + head * size
    q = tl.load(here + query[:, None] * step + lane[None, :], mask=query[:, None] < length, other=0.0)
    k_at = here + heads * size + key[None, :] * step + lane[:, None]
    v_at = here + 2 * heads * size + key[:, None] * step + lane[None, :]

    best = tl.full([queries], -float("inf"), dtype=tl.float32)
    weight = tl.zeros([queries], dtype=tl.float32)
    acc = tl.zeros([queries, size], dtype=tl.float32)
    full = end // keys * keys
    for offset in range(0, full, keys):
        acc, best, weight = add_tile(
            q, k_at + offset * step, v_at + offset * step, key, acc, best, weight, scale, False, precision
        )
    if full < end:
        acc, best, weight = add_tile(
            q, k_at + full * step, v_at + full * step, full + key < end, acc, best, weight, scale, True, precision
        )
    # the best key alone weighs 1, so the weight is below 1 only where there are no keys
    result = acc / tl.maximum(weight, 1.0)[:, None]
    to = out + (row * positions + query[:, None]) * (heads * size) + head * size + lane[None, :]
    tl.store(to, result, mask=query[:, None] < positions)


@torch.library.custom_op("chatterbox::attend", mutates_args=())
def attend(qkv: Tensor, lengths: Tensor) -> Tensor:
    """Attention of every row to itself; the padding's results are finite and meaningless.

    qkv: [rows, positions, 3, heads, size], contiguous, size a power of two of at least 16; lengths: [rows] integers.
    Returns [rows, positions, heads * size].
    """
    assert qkv.is_contiguous()
    rows, positions, _, heads, size = qkv.shape
    out = torch.empty(rows, positions, heads * size, dtype=qkv.dtype, device=qkv.device)
    large, small = TILES[qkv.dtype.itemsize]
    tiles = small if triton.cdiv(positions, large.queries) * heads * rows < FEW_PROGRAMS else large
    _attend_kernel[(triton.cdiv(positions, tiles.queries), heads, rows)](
        qkv,
        lengths,
        out,
        positions,
        math.log2(math.e) / math.sqrt(size),
        heads=heads,
        size=size,
        queries=tiles.queries,
        keys=tiles.keys,
        precision="ieee",
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


@attend.register_fake
def _(qkv: Tensor, _lengths: Tensor) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[3] * qkv.shape[4])
