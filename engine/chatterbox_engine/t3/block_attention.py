"""Attention of blocks of speech tokens: every position to its whole block, and to all of its row before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.t3.kv_cache import KVCache


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a pass lie, the same in every layer.

    Two blocks of one row may share a pass, the one that is finished and the one after it: all keys and values of a
    layer are stored before any position attends to them.
    """

    position: Tensor  # [rows, block] int64, in each row's sequence
    store: Tensor  # [rows * block] int64, the pool position of each key and value; padding: scratch
    start: Tensor  # [rows] int64, where in the pool each row begins
    end: Tensor  # [rows] int64, positions of each row up to the end of its block
    spans: Sequence[tuple[int, int]] = ()
    """Start and end on the host, for a CPU."""

    @classmethod
    def of(
        cls, cache: KVCache, start: Tensor, past: Tensor, length: Tensor, block: int, spans: Sequence[tuple[int, int]]
    ) -> Blocks:
        """For blocks of `length` tokens, at most `block`, after the first `past` positions of their rows: [rows] int64
        each."""
        own = torch.arange(block, device=start.device)
        position = past[:, None] + own
        store = (start[:, None] + position).masked_fill(own >= length[:, None], cache.scratch)
        return cls(position, store.flatten(), start.contiguous(), past + length, spans)


def block_attention(query: Tensor, key: Tensor, value: Tensor, pool: Tensor, *, blocks: Blocks) -> Tensor:
    """Stores the keys and values of some blocks and attends to their rows.

    query, key, value: [rows, block, heads, head_dim]; pool: a layer's [2, positions, heads, head_dim]. Returns the same
    shape as the query; of padding it is meaningless.
    """
    keys, values = pool.unbind()
    keys.index_copy_(0, blocks.store, key.flatten(0, 1))
    values.index_copy_(0, blocks.store, value.flatten(0, 1))
    if query.is_cuda:
        from chatterbox_engine.t3.block_attention_cuda import attend_blocks

        return attend_blocks(query, keys, values, blocks.start, blocks.end)
    mixed = torch.empty_like(query)
    # row by row: no copy of what a row holds, and the same bits whatever the others hold
    for index, (start, end) in enumerate(blocks.spans):
        held = keys[start : start + end], values[start : start + end]
        q, k, v = (part.transpose(0, 1)[None] for part in (query[index], *held))
        mixed[index] = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
    return mixed
