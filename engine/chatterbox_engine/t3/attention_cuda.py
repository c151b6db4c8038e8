"""Triton kernel of a decode step's attention: partial softmax per split of a row, combined by the last split.

Its input is the projection's output: it applies RoPE to query and key and stores the new key and value, which would be
eight kernels of torch. The splits of a row and head increment a counter when they are done; the one that finds all
others counted combines them, in their order, so that the sum has the same bits whichever that is.

The next keys and values are loaded while the current ones are used, the first ones before the kernel that makes the
query is done (`overlap_cuda`).

`TRITON_INTERPRET=1` runs it on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatterbox_engine.kernels.overlap_cuda import overlaps, start_next
from chatterbox_engine.t3.kv_cache import SPLIT_PAIRS

BLOCK = 16
"""Positions per iteration of a program, which is one warp. Larger blocks keep fewer programs' loads in flight."""
MAX_SPLITS = 16
# Programs that keep a large GPU (132 multiprocessors) busy; more splits than needed take longer to combine.
TARGET_PROGRAMS = 2 * SPLIT_PAIRS


@triton.jit
def _rotated(vector, rotation, head_dim: tl.constexpr):  # type: ignore[no-untyped-def]
    """A query or key of one head in float32, with RoPE in transformers' half-split form if there is a rotation."""
    lane = tl.arange(0, head_dim)
    x = tl.load(vector + lane).to(tl.float32)
    if rotation is not None:
        half: tl.constexpr = head_dim // 2
        other = tl.load(vector + (lane + half) % head_dim).to(tl.float32)
        cos = tl.load(rotation + lane % half).to(tl.float32)
        sin = tl.load(rotation + half + lane % half).to(tl.float32)
        x = x * cos + tl.where(lane < half, -other, other) * sin
    return x


@triton.jit
def _load_block(  # type: ignore[no-untyped-def]
    keys,
    values,
    first,
    offset,
    end,
    head,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    block: tl.constexpr,
):
    """A head's keys and values of `block` positions from `offset` on, as stored, and which of these are before
    `end`."""
    where = offset + tl.arange(0, block)
    inside = where < end
    at = (((first + where) * heads + head) * head_dim)[:, None] + tl.arange(0, head_dim)[None, :]
    k = tl.load(keys + at, mask=inside[:, None], other=0.0)
    v = tl.load(values + at, mask=inside[:, None], other=0.0)
    return k, v, inside


@triton.jit
def _combined(partial, peak, total, pair, head_dim: tl.constexpr, splits: tl.constexpr):  # type: ignore[no-untyped-def]
    """A head's result from the partial ones of its splits. They are read past the multiprocessor's own cache, which may
    hold older contents."""
    slot = pair * splits + tl.arange(0, splits)
    lane = tl.arange(0, head_dim)
    best = tl.load(peak + slot, cache_modifier=".cg")
    # Split 0 always holds the new position, so the highest peak is finite; an empty split has weight 0.
    share = tl.exp(best - tl.max(best, axis=0))
    acc = tl.load(partial + slot[:, None] * head_dim + lane[None, :], cache_modifier=".cg")
    weight = tl.load(total + slot, cache_modifier=".cg")
    return tl.sum(share[:, None] * acc, axis=0) / tl.sum(share * weight, axis=0)


@triton.jit
def _store_split(  # type: ignore[no-untyped-def]
    acc,
    best,
    weight,
    pair,
    split,
    partial,
    peak,
    total,
    arrived,
    out,
    head_dim: tl.constexpr,
    splits: tl.constexpr,
):
    """Stores the partial result of a split of a row and head; the last of them stores the head's result."""
    slot = pair * splits + split
    lane = tl.arange(0, head_dim)
    tl.store(partial + slot * head_dim + lane, acc)
    tl.store(peak + slot, best)
    tl.store(total + slot, weight)
    tl.debug_barrier()  # all threads of this split have stored before it is counted
    if tl.atomic_add(arrived + pair, 1) == splits - 1:
        tl.store(arrived + pair, 0)
        tl.store(out + pair * head_dim + lane, _combined(partial, peak, total, pair, head_dim, splits))


@triton.jit
def _store_new(keys, values, at, new, rotation, heads: tl.constexpr, head_dim: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stores a head's new key and value, and returns them rounded as they are stored, so that later steps use the
    same."""
    key = _rotated(new + heads * head_dim, rotation, head_dim).to(keys.dtype.element_ty)
    value = tl.load(new + 2 * heads * head_dim + tl.arange(0, head_dim))
    tl.store(keys + at, key)
    tl.store(values + at, value)
    return key, value


@triton.jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    qkv,
    rotation,
    keys,
    values,
    start,
    position,
    partial,
    peak,
    total,
    arrived,
    out,
    scale,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    splits: tl.constexpr,
    block: tl.constexpr,
    overlapping: tl.constexpr,
):
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lane = tl.arange(0, head_dim)
    # 64 bit: a pool of 300,000 positions of 1024 values passes 2^31 bytes, and near it elements
    first = tl.load(start + row).to(tl.int64)
    held = tl.load(position + row).to(tl.int32)  # positions before the new one
    blocks_per_split = tl.cdiv(tl.cdiv(held, block), splits)
    offset = split * blocks_per_split * block
    end = tl.minimum(offset + blocks_per_split * block, held)
    k, v, inside = _load_block(keys, values, first, offset, end, head, heads, head_dim, block)
    start_next(overlapping)
    new = qkv + (row * 3 * heads + head) * head_dim
    own_rotation = None if rotation is None else rotation + row * head_dim
    q = _rotated(new, own_rotation, head_dim) * scale

    best = -float("inf")
    weight = 0.0
    acc = tl.zeros([head_dim], dtype=tl.float32)
    if split == 0:  # the new position
        at = ((first + held) * heads + head) * head_dim + lane
        new_key, new_value = _store_new(keys, values, at, new, own_rotation, heads, head_dim)
        best = tl.sum(new_key.to(tl.float32) * q, axis=0)
        weight = 1.0
        acc = new_value.to(tl.float32)

    while offset < end:
        offset += block
        next_k, next_v, next_inside = _load_block(keys, values, first, offset, end, head, heads, head_dim, block)
        score = tl.where(inside, tl.sum(k.to(tl.float32) * q[None, :], axis=1), -float("inf"))
        higher = tl.maximum(best, tl.max(score, axis=0))
        share = tl.exp(score - higher)
        shrink = tl.exp(best - higher)
        acc = acc * shrink + tl.sum(share[:, None] * v.to(tl.float32), axis=0)
        weight = weight * shrink + tl.sum(share, axis=0)
        best = higher
        k, v, inside = next_k, next_v, next_inside
    if splits == 1:
        tl.store(out + (row * heads + head) * head_dim + lane, acc / weight)
    else:
        pair = row * heads + head
        _store_split(acc, best, weight, pair, split, partial, peak, total, arrived, out, head_dim, splits)


def splits_for(rows: int, heads: int) -> int:
    """Splits per row, a power of two, so that small batches fill the GPU as well."""
    wanted = max(1, TARGET_PROGRAMS // (rows * heads))
    return min(MAX_SPLITS, 1 << (wanted.bit_length() - 1))


def split_decode(
    qkv: Tensor,
    rotation: Tensor | None,
    keys: Tensor,
    values: Tensor,
    arrived: Tensor,
    start: Tensor,
    position: Tensor,
) -> Tensor:
    """Stores one new key and value a row and attends to all positions of the row: [rows, heads, head_dim].

    qkv and rotation as in `attention.decode_attention`; `keys` and `values` are the contiguous pool [positions, heads,
    head_dim]; head_dim is a power of two of at least 16. arrived: [SPLIT_PAIRS] int32, zero before and after.
    """
    rows, _, heads, head_dim = qkv.shape
    splits, overlapping = splits_for(rows, heads), overlaps(qkv.device)
    qkv = qkv.contiguous()
    out = qkv.new_empty(rows, heads, head_dim)
    partial = peak = total = None
    if splits > 1:
        partial = torch.empty(rows, heads, splits, head_dim, dtype=torch.float32, device=qkv.device)
        peak = torch.empty(rows, heads, splits, dtype=torch.float32, device=qkv.device)
        total = torch.empty_like(peak)
    _decode_kernel[(rows, heads, splits)](
        qkv,
        rotation,
        keys,
        values,
        start,
        position,
        partial,
        peak,
        total,
        arrived if splits > 1 else None,
        out,
        head_dim**-0.5,
        heads=heads,
        head_dim=head_dim,
        splits=splits,
        block=BLOCK,
        overlapping=overlapping,
        num_warps=1,
        launch_pdl=overlapping,
    )
    return out
