"""Attention over a pool of KV positions, of a decode step and of a prompt.

The pool has no batch dimension: a row owns the extent `start .. start + capacity` of positions, so rows of any length
share one static tensor and a captured graph serves every length. In a decode step each row reads only the positions
that it has filled. On CUDA the method is split-K decoding ("Flash-Decoding", Dao et al. 2023) with the row's length
read on the device; on a CPU a numba kernel takes some heads of a row at a time. A prompt also attends to the prefix
that its extent holds already (`Context`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.t3.extents import round_up
from chatterbox_engine.t3.kv_cache import KVCache

_MASK_GRAIN = 8


def decode_attention(
    qkv: Tensor,
    rotation: Tensor | None,
    pool: Tensor,
    arrived: Tensor,
    layer: int,
    start: Tensor,
    position: Tensor,
) -> Tensor:
    """Stores each row's new key and value and attends to all positions of the row: [rows, heads, head_dim].

    qkv: [rows, 3, heads, head_dim], of the new position; rotation: [rows, 2, head_dim / 2], cosines and sines of RoPE
    for query and key, or None; pool: [layers, 2, positions, heads, head_dim]; arrived: `KVCache.arrived`; start: [rows]
    int64, first position of each row's extent; position: [rows] int64, where in its extent each row's new key goes. On
    a GPU start, position and the rows' keys and values may be read before the kernel that was launched last is done
    (`overlap_cuda`), which must have made none of them.
    """
    if torch.compiler.is_compiling():
        return _operator(qkv, rotation, pool, arrived, layer, start, position)
    keys, values = pool[layer].unbind()
    if qkv.is_cuda:
        from chatterbox_engine.t3.attention_cuda import split_decode

        return split_decode(qkv, rotation, keys, values, arrived, start, position)
    from chatterbox_engine.kernels.cpu.decode_attention import decode_attention as on_cpu

    return on_cpu(qkv, rotation, keys, values, start, position)


# The same for torch.compile, which cannot trace it; an operator's first call imports the compiler, which takes two
# seconds. The whole pool is an argument: inductor (torch 2.11) loses writes when an operator mutates two views of one
# tensor.
_operator = torch.library.custom_op("chatterbox::decode_attention", decode_attention, mutates_args=("pool", "arrived"))


@_operator.register_fake
def _(qkv: Tensor, *_rest: Tensor | int | None) -> Tensor:
    return qkv.new_empty(len(qkv), *qkv.shape[2:])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """RoPE in transformers' half-split form. x: [..., head_dim]; rotation: cosines and sines, [..., 2, head_dim / 2],
    whose dimensions before those broadcast to x's."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotation.unbind(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@dataclass(frozen=True)
class Context:
    """Positions of a prefill's inputs and what each of them attends to, the same in every layer."""

    position: Tensor  # [rows, length] int64, in the row's sequence
    last: Tensor  # [rows] int64, which input is the last one before padding
    store: Tensor  # [rows * length] int64, the pool position of each input's key and value; padding: scratch
    held: Tensor  # [rows, reach] int64, the pool positions of the row's sequence
    mask: Tensor  # [rows, 1, length, reach], 0 where an input attends to a position and -inf elsewhere

    @classmethod
    def of(cls, cache: KVCache, start: Tensor, past: Tensor, last: Tensor, *, length: int, reach: int) -> Context:
        """For rows of `length` inputs that follow the first `past` positions of their extents.

        start, past, last: [rows] int64. reach: positions of a row at most, prefix and padding included. Nothing is
        read on the host, so that a graph can capture it.
        """
        own = torch.arange(length, device=start.device)
        # On CUDA torch's memory-efficient kernel takes a mask (the flash kernel takes none), and without a copy if the
        # mask's rows have such a length.
        key = torch.arange(round_up(reach, _MASK_GRAIN), device=start.device)
        position = past[:, None] + own
        store = (start[:, None] + position).masked_fill(own > last[:, None], cache.scratch)
        # positions after a row's last one may never have been written, and a NaN gets through any mask
        held = start[:, None] + torch.minimum(key, (past + last)[:, None])
        mask = torch.zeros(len(start), 1, length, len(key), dtype=cache.data.dtype, device=start.device)
        mask = mask.masked_fill(key > position[:, None, :, None], -math.inf)
        return cls(position, last, store.flatten(), held, mask)


def prompt_attention(query: Tensor, key: Tensor, value: Tensor, pool: Tensor, context: Context) -> Tensor:
    """Stores the keys and values of a prefill's inputs and attends to their rows, prefix included.

    query, key, value: [rows, length, heads, head_dim]; pool: a layer's [2, positions, heads, head_dim]. Returns
    [rows, length, heads, head_dim].
    """
    held: list[Tensor] = []
    for part, new in zip(pool.unbind(), (key, value), strict=True):
        part.index_copy_(0, context.store, new.flatten(0, 1))
        rows = part.index_select(0, context.held.flatten()).unflatten(0, context.held.shape)
        held.append(rows.transpose(1, 2))  # [rows, heads, reach, head_dim]
    keys, values = held
    return F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=context.mask).transpose(1, 2)
