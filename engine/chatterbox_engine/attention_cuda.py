"""Triton kernels of the decode attention: partial softmax per split of a row, then the splits joined.

`TRITON_INTERPRET=1` runs them on the CPU, which is how they are tested where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatterbox_engine.attention import scale_of

BLOCK = 64
MAX_SPLITS = 16
# Programs that keep a large GPU (132 multiprocessors) busy; more splits than needed cost a longer join.
TARGET_PROGRAMS = 1024


@triton.jit
def _partial_kernel(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    start,
    position,
    partial,
    peak,
    total,
    scale,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    splits: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    first = tl.load(start + row)
    length = tl.load(position + row) + 1
    blocks_per_split = tl.cdiv(tl.cdiv(length, block), splits)
    begin = split * blocks_per_split * block
    end = tl.minimum(begin + blocks_per_split * block, length)

    lane = tl.arange(0, head_dim)
    q = tl.load(query + (row * heads + head) * head_dim + lane).to(tl.float32) * scale
    best = -float("inf")
    weight = 0.0
    acc = tl.zeros([head_dim], dtype=tl.float32)
    for offset in range(begin, end, block):
        where = offset + tl.arange(0, block)
        inside = where < end
        # 64 bit: a pool of 300,000 positions of 1024 values passes 2^31 bytes, and near it elements
        at = ((first + where).to(tl.int64) * heads + head) * head_dim
        k = tl.load(keys + at[:, None] + lane[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
        score = tl.where(inside, tl.sum(k * q[None, :], axis=1), -float("inf"))
        higher = tl.maximum(best, tl.max(score, axis=0))
        share = tl.exp(score - higher)
        shrink = tl.exp(best - higher)
        v = tl.load(values + at[:, None] + lane[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
        acc = acc * shrink + tl.sum(share[:, None] * v, axis=0)
        weight = weight * shrink + tl.sum(share, axis=0)
        best = higher
    slot = (row * heads + head) * splits + split
    tl.store(partial + slot * head_dim + lane, acc)
    tl.store(peak + slot, best)
    tl.store(total + slot, weight)


@triton.jit
def _join_kernel(  # type: ignore[no-untyped-def]
    partial,
    peak,
    total,
    out,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    splits: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    slot = (row * heads + head) * splits + tl.arange(0, splits)
    lane = tl.arange(0, head_dim)
    best = tl.load(peak + slot)
    # Split 0 always holds position 0, so the highest peak is finite; an empty split has weight 0.
    share = tl.exp(best - tl.max(best, axis=0))
    acc = tl.load(partial + slot[:, None] * head_dim + lane[None, :])
    joined = tl.sum(share[:, None] * acc, axis=0) / tl.sum(share * tl.load(total + slot), axis=0)
    tl.store(out + (row * heads + head) * head_dim + lane, joined)


def splits_for(rows: int, heads: int) -> int:
    """How many parts each row is cut into, a power of two, so that small batches fill the GPU as well."""
    wanted = max(1, TARGET_PROGRAMS // (rows * heads))
    return min(MAX_SPLITS, 1 << (wanted.bit_length() - 1))


def split_decode(query: Tensor, keys: Tensor, values: Tensor, start: Tensor, position: Tensor) -> Tensor:
    """Attention of one new query a row: [rows, heads, head_dim].

    `keys` and `values` are the contiguous pool [positions, heads, head_dim]; head_dim is a power of two of at least 16.
    """
    rows, heads, head_dim = query.shape
    splits = splits_for(rows, heads)
    query = query.contiguous()
    partial = torch.empty(rows, heads, splits, head_dim, dtype=torch.float32, device=query.device)
    peak = torch.empty(rows, heads, splits, dtype=torch.float32, device=query.device)
    total = torch.empty_like(peak)
    out = torch.empty_like(query)
    _partial_kernel[(rows, heads, splits)](
        query,
        keys,
        values,
        start,
        position,
        partial,
        peak,
        total,
        scale_of(head_dim),
        heads=heads,
        head_dim=head_dim,
        splits=splits,
        block=BLOCK,
    )
    _join_kernel[(rows, heads)](partial, peak, total, out, heads=heads, head_dim=head_dim, splits=splits)
    return out
