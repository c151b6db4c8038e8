"""Sharing a GPU between threads: a stream for each, and uploads that do not wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def own_stream(device: torch.device, priority: int = 0) -> None:
    """Gives the calling thread a CUDA stream of its own, so that its work and that of other threads do not wait for
    each other; priority: -1 goes before 0. Does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=priority))


def upload(values: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Values on the device, copied from pinned memory, so that the host does not wait for the device. Tensors that are
    on the device already are returned as they are."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def reserved_bytes(device: torch.device) -> int:
    """GPU memory that torch holds; 0 for a CPU."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
