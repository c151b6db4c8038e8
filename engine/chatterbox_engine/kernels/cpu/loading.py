"""The kernels that an engine needs, before its first request."""

from __future__ import annotations

import torch

from chatterbox_engine.kernels.cpu import alignment, attention, decode_attention, products, snake
from chatterbox_engine.kernels.cpu.launch import Kernel


def load(t3: torch.dtype, vocoder: torch.dtype) -> None:
    """Compiles the kernels of these types of weights, or loads them from numba's cache."""
    kernels: list[Kernel] = [*(module.KERNELS[t3] for module in (products, decode_attention, alignment))]
    kernels.append(snake.snake_kernel)
    if vocoder == torch.float16:
        kernels += products.KERNELS[vocoder], attention.attention_kernel
    for kernel in kernels:
        _ = kernel.address
