"""Runs the CUDA kernels in Triton's interpreter on the CPU; a process of its own, since the switch is read at import.

Prints a line `kernel case error bound` for each case: the largest difference to torch's own operators.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F

from chatterbox_engine import attention_cuda
from chatterbox_engine.attention import attend_row_by_row
from chatterbox_engine.attention_cuda import split_decode
from chatterbox_engine.s3gen.attention_cuda import attend

DECODE = [(2, 32, [1, 64, 200]), (4, 64, [700, 65]), (2, 16, [599])]
UNSPLIT = (2, 32, [1, 64, 129])
# float16 where the engine has bfloat16, which the interpreter cannot multiply
ATTEND = [
    (heads, size, positions, lengths, dtype)
    for dtype in (torch.float32, torch.float16)
    for heads, size, positions, lengths in (
        (2, 32, 70, [70, 33]),
        (1, 64, 200, [1, 128, 200]),  # a whole number of tiles, and programs behind the end
        (2, 16, 129, [129, 64]),
        (1, 64, 70, None),
    )
]


def decode_error(heads: int, head_dim: int, lengths: list[int]) -> float:
    generator = torch.Generator().manual_seed(len(lengths))
    room = [length + 5 for length in lengths]
    start = torch.tensor([3 + sum(room[:row]) for row in range(len(room))])
    keys = torch.randn(sum(room) + 10, heads, head_dim, generator=generator)
    values = torch.randn(keys.shape, generator=generator)
    query = torch.randn(len(lengths), heads, head_dim, generator=generator)
    arguments = (query, keys, values, start, torch.tensor(lengths) - 1)
    return float((split_decode(*arguments) - attend_row_by_row(*arguments)).abs().max())


def attend_error(heads: int, size: int, positions: int, lengths: list[int] | None, dtype: torch.dtype) -> float:
    rows = len(lengths or [0])
    qkv = torch.randn(rows, positions, 3, heads, size, generator=torch.Generator().manual_seed(positions)).to(dtype)
    if lengths is not None:
        for row, length in enumerate(lengths):
            qkv[row, length:] = torch.nan  # what nobody may hear
    out = attend(qkv, None if lengths is None else torch.tensor(lengths)).float()
    worst = 0.0
    for row, length in enumerate(lengths or [positions]):
        q, k, v = qkv[row, :length].float().permute(1, 2, 0, 3)
        exact = F.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1)
        worst = max(worst, float((out[row, :length] - exact).abs().max()))
    assert out.isfinite().all(), "numbers behind a row's end must stay finite"
    return worst


if __name__ == "__main__":
    for heads, head_dim, lengths in DECODE:
        print("decode", (heads, head_dim, len(lengths)), decode_error(heads, head_dim, lengths), 1e-5, sep="\t")
    attention_cuda.TARGET_PROGRAMS = 1  # as if there were so many rows that none is split
    print("decode", UNSPLIT, decode_error(*UNSPLIT), 1e-5, sep="\t")
    for heads, size, positions, lengths, dtype in ATTEND:
        bound = 1e-5 if dtype == torch.float32 else 2e-3
        error = attend_error(heads, size, positions, lengths, dtype)
        print("attend", (heads, size, positions, lengths, dtype), error, bound, sep="\t")
