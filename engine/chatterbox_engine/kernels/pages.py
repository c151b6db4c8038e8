"""Memory of the weights that a CPU reads in every step."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

LARGE_PAGE = 2 << 20
"""Bytes of a large page of x86-64, and of AArch64 with base pages of 4 KiB."""


def in_large_pages(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a tensor on the host in large pages, if it fills one and the system has them; else `tensor.to(dtype)`.

    A processor that reads a large matrix looks up the physical address of one page after the other. With large pages
    there are fewer of them, and a step is 3 to 5% faster (docs/log/cpu.md). torch's own switch, `THP_MEM_ALLOC_ENABLE`,
    would give them to every short-lived tensor too.
    """
    size = tensor.numel() * dtype.itemsize
    if size < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor.to(dtype)
    area = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        area.madvise(mmap.MADV_HUGEPAGE)
    numbers = torch.frombuffer(area, dtype=torch.uint8)
    first = -numbers.data_ptr() % LARGE_PAGE
    return numbers[first : first + size].view(dtype).view(tensor.shape).copy_(tensor)
