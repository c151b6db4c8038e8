"""Functions of one number, which LLVM vectorises, and of a row of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from chatterbox_engine.kernels.cpu.vectors import FAST, bits_of, float_of, float_of_half, half_of


def wide(_number: Any) -> Any:
    """A float32, or the bits of a bfloat16 or float16, as float32."""


@overload(wide)
def _wide_of(number):  # type: ignore[no-untyped-def]
    if number == types.uint16:
        return lambda number: float_of(np.int32(number) << np.int32(16))
    if number == types.int16:
        return lambda number: float_of_half(number)  # noqa: PLW0108
    return lambda number: number


def narrow(_number: Any, _like: Any) -> Any:
    """A float32 as the array `like` stores it: as it is, or the bits of the nearest bfloat16 or float16."""


@overload(narrow)
def _narrow_of(number, like):  # type: ignore[no-untyped-def]
    if like.dtype == types.float32:
        return lambda number, like: number
    if like.dtype == types.int16:
        return lambda number, like: half_of(number)

    def rounded(number, like):  # type: ignore[no-untyped-def]
        bits = bits_of(number)
        return np.uint16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))

    return rounded


@njit(fastmath=FAST)
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x of a float32, clamped to -87 .. 87: a power of two times Taylor's polynomial."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    whole = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    x = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)  # ln 2 in two parts
    y = np.float32(1.0 / 5040.0)
    y = y * x + np.float32(1.0 / 720.0)
    y = y * x + np.float32(1.0 / 120.0)
    y = y * x + np.float32(1.0 / 24.0)
    y = y * x + np.float32(1.0 / 6.0)
    y = y * x + np.float32(0.5)
    y = y * x + np.float32(1.0)
    y = y * x + np.float32(1.0)
    return y * float_of((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(fastmath=FAST, error_model="numpy")
def sigmoid(x):  # type: ignore[no-untyped-def]
    return np.float32(1.0) / (np.float32(1.0) + _exp(-x))


@njit(fastmath=FAST, error_model="numpy")
def softmax(scores):  # type: ignore[no-untyped-def]
    largest, total = _largest(scores), np.float32(0.0)
    for i in range(len(scores)):
        scores[i] = _exp(scores[i] - largest)
    for i in range(len(scores)):
        total += scores[i]
    for i in range(len(scores)):
        scores[i] /= total


@njit(fastmath=True)
def _largest(x):  # type: ignore[no-untyped-def]
    largest = x[0]
    for i in range(len(x)):
        largest = max(largest, x[i])
    return largest


@njit(fastmath=FAST)
def rotate(vector, rotation, rotated, result):  # type: ignore[no-untyped-def]
    """A query or key of one head in float32, with RoPE in transformers' half-split form if `rotated`."""
    half = len(vector) // 2
    for i in range(half):
        first, second = wide(vector[i]), wide(vector[half + i])
        if rotated:
            cos, sin = wide(rotation[0, i]), wide(rotation[1, i])
            first, second = first * cos - second * sin, second * cos + first * sin
        result[i], result[half + i] = first, second
