"""Attention of a decode step over a pool of KV positions, each row reading only what it has filled.

The pool has no batch dimension: a row owns the extent `start .. start + capacity` of positions, so rows of any length
share one static tensor and a captured graph serves every length. On CUDA the method is split-K decoding
("Flash-Decoding", Dao et al. 2023) with the row's length read on the device; elsewhere one row after the other through
torch's own kernel, which also serves as the reference of the tests.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


# The pool goes in whole: inductor (torch 2.11) loses writes when an operator mutates two views of one tensor.
@torch.library.custom_op("chatterbox::decode_attention", mutates_args=("pool",))
def decode_attention(
    qkv: Tensor,  # [rows, 3, heads, head_dim], of the new position
    rotation: Tensor | None,  # [rows, 2, head_dim / 2], cosines and sines that turn query and key; None: they stay
    pool: Tensor,  # [layers, 2, positions, heads, head_dim]
    layer: int,
    start: Tensor,  # [rows] int64, first position of each row's extent
    position: Tensor,  # [rows] int64, where in its extent each row's new key goes
) -> Tensor:
    """Stores each row's new key and value and attends to everything that the row holds: [rows, heads, head_dim]."""
    keys, values = pool[layer].unbind()
    if qkv.is_cuda:
        from chatterbox_engine.attention_cuda import split_decode

        return split_decode(qkv, rotation, keys, values, start, position)
    query, key, value = qkv.unbind(1)
    if rotation is not None:
        query, key = rotate(qkv[:, :2], rotation[:, None, None]).unbind(1)
    keys.index_copy_(0, start + position, key)
    values.index_copy_(0, start + position, value)
    return attend_row_by_row(query, keys, values, start, position)


@decode_attention.register_fake
def _(qkv: Tensor, *_rest: Tensor | int | None) -> Tensor:
    return qkv.new_empty(len(qkv), *qkv.shape[2:])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """RoPE in transformers' half-split form. x: [..., head_dim]; rotation: cosines and sines, [..., 2, head_dim / 2],
    whose dimensions before those broadcast to x's."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotation.unbind(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend_row_by_row(query: Tensor, keys: Tensor, values: Tensor, start: Tensor, position: Tensor) -> Tensor:
    """The plain form of `decode_attention` without the store; `keys` and `values` are a layer's [positions, heads,
    head_dim]. Reads `start` and `position` on the host."""
    out = torch.empty_like(query)
    for row, (first, last) in enumerate(zip(start.tolist(), position.tolist(), strict=True)):
        if last == 0:  # padding: one position has all the weight
            out[row] = values[first]
            continue
        extent = slice(first, first + last + 1)
        # [1, heads, 1, head_dim] against [1, heads, length, head_dim], the pool seen through strides. In float32, since
        # torch's bfloat16 kernel for a CPU takes 5 to 11 times as long with a single query (torch 2.11, 125 to 1,000
        # positions).
        out[row] = F.scaled_dot_product_attention(
            query[row].float()[None, :, None],
            keys[extent].float().transpose(0, 1)[None],
            values[extent].float().transpose(0, 1)[None],
        )[0, :, 0]
    return out


def scale_of(head_dim: int) -> float:
    """The usual 1 / sqrt(head_dim)."""
    return 1.0 / math.sqrt(head_dim)
