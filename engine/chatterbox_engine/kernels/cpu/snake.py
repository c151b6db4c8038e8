"""HiFT's activation."""

from __future__ import annotations

import ctypes
from ctypes import c_int64

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from chatterbox_engine.kernels.cpu.launch import BEGUN, COUNTERS, DONE, Kernel, address, run
from chatterbox_engine.kernels.cpu.vectors import FAST, booleans_at, floats_at, take

NUMBERS = 1 << 14
"""Numbers in a piece of work of an activation."""


class SnakeCall(ctypes.Structure):
    """active = y + sin(alpha y)^2 inverse where the mask is True, else 0; y = x + change"""

    _fields_ = (
        *COUNTERS,
        ("positions", c_int64),
        ("channels", c_int64),
        ("x", c_int64),  # [positions, channels]
        ("change", c_int64),  # [positions, channels], overwritten by y
        ("mask", c_int64),  # [positions] bool
        ("alpha", c_int64),  # [channels]
        ("inverse", c_int64),  # [channels]
        ("active", c_int64),  # [positions, channels]
    )


_CALL = np.dtype(SnakeCall)


@njit(fastmath=FAST)
def _sine_squared(x):  # type: ignore[no-untyped-def]
    """sin(x)^2 of a float32. Its period is pi, which is subtracted in three parts (Cody and Waite)."""
    whole = np.floor(x * np.float32(0.3183098861837907) + np.float32(0.5))
    x = x - whole * np.float32(3.140625)
    x = x - whole * np.float32(9.67502593994140625e-4)
    x = x - whole * np.float32(1.5099579909783765e-7)
    square = x * x
    y = np.float32(-1.0 / 39916800.0)
    y = y * square + np.float32(1.0 / 362880.0)
    y = y * square - np.float32(1.0 / 5040.0)
    y = y * square + np.float32(1.0 / 120.0)
    y = y * square - np.float32(1.0 / 6.0)
    y = x + x * square * y
    return y * y


@njit(fastmath=FAST)
def _activate(values, alpha, inverse, active):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        active[i] = values[i] + _sine_squared(values[i] * alpha[i]) * inverse[i]


@Kernel
def snake_kernel(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    call = work[0]
    positions, channels = call.positions, call.channels
    changed, masked = call.change != 0, call.mask != 0
    shape = (positions, channels)
    x, sums = carray(floats_at(call.x), shape), carray(floats_at(call.change), shape)
    active = carray(floats_at(call.active), shape)
    alpha, inverse = carray(floats_at(call.alpha), channels), carray(floats_at(call.inverse), channels)
    inside = carray(booleans_at(call.mask), positions)
    block = max(1, NUMBERS // channels)
    while True:
        first = take(work.ctypes.data) * block
        if first >= positions:
            break
        for position in range(first, min(first + block, positions)):
            values = x[position]
            if changed:
                values = sums[position]
                for i in range(channels):
                    values[i] += x[position, i]
            if not masked or inside[position]:
                _activate(values, alpha, inverse, active[position])
            else:
                active[position] = np.float32(0.0)
    take(work.ctypes.data + DONE)


def snake(
    x: Tensor, alpha: Tensor, inverse: Tensor, mask: Tensor | None, *, change: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `s3gen.snake_cuda.snake`; `change` is overwritten by the sum."""
    assert x.dtype == torch.float32
    x, active = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    change = None if change is None else change.contiguous()
    rows, positions, channels = x.shape
    call = SnakeCall(
        positions=rows * positions,
        channels=channels,
        x=address(x),
        change=address(change),
        mask=address(mask),
        alpha=address(alpha),
        inverse=address(inverse),
        active=address(active),
    )
    run(snake_kernel, call)
    return x if change is None else change, active
