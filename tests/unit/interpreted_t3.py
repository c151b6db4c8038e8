"""T3's steps in float16 by the CUDA kernels, in Triton's interpreter, beside float32 on a CPU.

A process of its own, since the switch is read at import. Prints the relative difference of the logits. Arguments:
folders of checkpoints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.kernels import linear_cuda
from chatterbox_engine.kernels.linear import Projection
from chatterbox_engine.t3 import flash, gpt2, llama
from chatterbox_engine.t3.attention_cuda import split_decode
from chatterbox_engine.t3.block_attention import Blocks
from chatterbox_engine.t3.block_attention_cuda import attend_blocks
from chatterbox_engine.t3.transformer import Transformer
from tests.fidelity.t3_loop import Served, relative_error, teacher_forced

STEPS = 4


def products(model: Transformer) -> Iterator[Projection]:
    """Those of the blocks; the interpreter would take minutes for the head's outputs."""
    for block in model.layers:
        yield from (block.attention_in, block.attention_out, block.mlp_in, block.mlp_out)


def attend(
    qkv: Tensor, rotation: Tensor | None, pool: Tensor, arrived: Tensor, layer: int, start: Tensor, position: Tensor
) -> Tensor:
    return split_decode(qkv, rotation, *pool[layer].unbind(), arrived, start, position)


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, pool: Tensor, *, blocks: Blocks) -> Tensor:
    keys, values = pool.unbind()
    keys.index_copy_(0, blocks.store, key.flatten(0, 1))
    values.index_copy_(0, blocks.store, value.flatten(0, 1))
    return attend_blocks(query, keys, values, blocks.start, blocks.end)


def main() -> None:
    for folder in sys.argv[1:]:
        checkpoint = Checkpoint.open(Path(folder))
        exact, half = (Served.of(checkpoint, dtype=dtype) for dtype in (torch.float32, torch.float16))
        generator = torch.Generator().manual_seed(1)
        text, forced = (torch.randint(3, 200, (count,), generator=generator) for count in (12, STEPS))
        expected = teacher_forced(exact.model, exact.voice, text, forced)
        with (
            mock.patch.object(llama, "decode_attention", attend),
            mock.patch.object(gpt2, "decode_attention", attend),
            mock.patch.object(flash, "block_attention", wraps=attend_in_blocks) as blocks,
            mock.patch.object(linear_cuda, "project", wraps=linear_cuda.project) as project,
        ):
            for product in products(half.model):
                product._product, product._kernel = None, project
            logits = teacher_forced(half.model, half.voice, text, forced)
        layers = half.model.dims.layers
        # Flash's passes of many rows take torch's products, and one block's two passes the attention of blocks
        used = (0, 2 * layers) if checkpoint.family.in_blocks else (4 * STEPS * layers, 0)
        assert (project.call_count, blocks.call_count) == used, "the kernels have not been used"
        print(relative_error(logits.float(), expected))


if __name__ == "__main__":
    main()
