"""Triton kernel of the attention of blocks of speech tokens: a program for each row and head, over all of the row.

The method is FlashAttention-2 (arXiv 2307.08691) with one tile of queries, the block. `TRITON_INTERPRET=1` runs it on
the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from chatterbox_engine.kernels.tiles_cuda import add_tile

TILES = {2: (64, 4, 3), 4: (32, 8, 2)}
"""By the bytes per number: keys per iteration, warps, and iterations whose keys are prefetched."""


@triton.jit
def _attend_blocks_kernel(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    start,
    end,
    out,
    scale,  # of the scores, to base 2
    heads: tl.constexpr,
    size: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
    precision: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    # 64 bit: a pool of 300,000 positions of 1024 values passes 2^31 bytes, and near it elements
    first = tl.load(start + row).to(tl.int64)
    held = tl.load(end + row).to(tl.int32)
    lane = tl.arange(0, size)
    own = tl.arange(0, block)
    key = tl.arange(0, tile)
    step: tl.constexpr = heads * size
    here = (row * block + own[:, None]) * step + head * size + lane[None, :]
    q = tl.load(query + here)
    k_at = keys + (first + key[None, :]) * step + head * size + lane[:, None]
    v_at = values + (first + key[:, None]) * step + head * size + lane[None, :]

    best = tl.full([block], -float("inf"), dtype=tl.float32)
    weight = tl.zeros([block], dtype=tl.float32)
    acc = tl.zeros([block, size], dtype=tl.float32)
    full = held // tile * tile
    for offset in range(0, full, tile):
        acc, best, weight = add_tile(
            q, k_at + offset * step, v_at + offset * step, key, acc, best, weight, scale, False, precision
        )
    if full < held:
        acc, best, weight = add_tile(
            q, k_at + full * step, v_at + full * step, full + key < held, acc, best, weight, scale, True, precision
        )
    tl.store(out + here, acc / weight[:, None])


def attend_blocks(query: Tensor, keys: Tensor, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Every position of a block attends to the first `end` positions of its row, at least one: the shape of `query`.

    query: [rows, block, heads, head_dim], block and head_dim powers of two of at least 16; keys, values: the contiguous
    pool [positions, heads, head_dim]; start, end: [rows] int64.
    """
    rows, block, heads, size = query.shape
    query = query.contiguous()
    out = query.new_empty(query.shape)
    tile, warps, stages = TILES[query.dtype.itemsize]
    _attend_blocks_kernel[(rows, heads)](
        query,
        keys,
        values,
        start,
        end,
        out,
        math.log2(math.e) / math.sqrt(size),
        heads=heads,
        size=size,
        block=block,
        tile=tile,
        precision="ieee",
        num_warps=warps,
        num_stages=stages,
    )
    return out
