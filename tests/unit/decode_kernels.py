"""Runs the CUDA kernels in Triton's interpreter on the CPU; a process of its own, since the switch is read at import.

Prints a line `rows heads head_dim lengths error` for each case: the largest difference to torch's attention.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from chatterbox_engine.attention import attend_row_by_row
from chatterbox_engine.attention_cuda import split_decode

CASES = [
    (2, 32, [1, 64, 200]),
    (4, 64, [700, 65]),
    (2, 16, [599]),
    (16, 16, [5] * 33),  # so many rows that they are not split
]


def error(heads: int, head_dim: int, lengths: list[int]) -> float:
    generator = torch.Generator().manual_seed(len(lengths))
    room = [length + 5 for length in lengths]
    start = torch.tensor([3 + sum(room[:row]) for row in range(len(room))])
    keys = torch.randn(sum(room) + 10, heads, head_dim, generator=generator)
    values = torch.randn(keys.shape, generator=generator)
    query = torch.randn(len(lengths), heads, head_dim, generator=generator)
    arguments = (query, keys, values, start, torch.tensor(lengths) - 1)
    return float((split_decode(*arguments) - attend_row_by_row(*arguments)).abs().max())


if __name__ == "__main__":
    for heads, head_dim, lengths in CASES:
        print(len(lengths), heads, head_dim, max(lengths), error(heads, head_dim, lengths))
