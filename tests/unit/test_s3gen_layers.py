"""S3Gen's products and convolutions on a CPU, whose float16 is computed by our kernel where it takes the matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.s3gen.layers import Conv, Linear, image_weight, windows
from tests.unit.cpu_products import project

LIMIT = {torch.float32: 1e-6, torch.float16: 2e-3}
"""Relative errors of a result."""
HALF = torch.float16


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def conv_of(dtype: torch.dtype, channels: int, kernel: int, *, biased: bool = True) -> Conv:
    weight = image_weight(numbers(50, channels, kernel, dtype=dtype, seed=1))
    return Conv(weight, numbers(50, dtype=dtype, seed=2) if biased else None)


def exactly(x: Tensor, conv: Conv, left: int, right: int) -> Tensor:
    """A convolution in float64."""
    wide = F.pad(x.double(), (0, 0, left, right)).transpose(1, 2)
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv1d(wide, conv.weight.double(), bias, conv.stride, conv.padding, conv.dilation).transpose(1, 2)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("channels", [64, 24, 20])  # for the kernel; for a convolution of 4; for torch
@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
def test_a_convolution_is_that_of_float64(kernel: int, channels: int, rows: int, dtype: torch.dtype) -> None:
    x = numbers(rows, 23, channels, dtype=dtype)
    for conv in (conv_of(dtype, channels, kernel), conv_of(dtype, channels, kernel, biased=False)):
        for left, right in ((0, 0), (3, 0), (0, 2)):
            got = conv(x, left=left, right=right)
            assert got.shape == (rows, 24 - kernel + left + right, 50)
            exact = exactly(x, conv, left, right)
            assert error(got, exact) < LIMIT[dtype], f"{error(got, exact):.2e}"
        assert torch.equal(conv.causal(x), conv(x, left=kernel - 1))
        assert torch.equal(conv.causal_in_parts(x)[0], conv.causal(x))
        assert torch.equal(conv.in_parts(x)[0], conv(x))


@pytest.mark.parametrize("channels", [64, 24])
def test_a_float16_convolution_is_our_kernels_where_that_takes_its_windows(channels: int) -> None:
    x, conv = numbers(2, 23, channels, dtype=HALF), conv_of(HALF, channels, 4)
    matrix = conv.weight.transpose(1, 2).reshape(50, -1)
    assert torch.equal(conv(x), project(windows(x, 4), matrix, conv.bias))


@pytest.mark.parametrize("change", [{"stride": 2}, {"dilation": 2}, {"padding": 2}], ids=str)
def test_other_convolutions_are_those_of_float64(change: dict[str, int]) -> None:
    x, conv = numbers(2, 23, 64, dtype=HALF), replace(conv_of(HALF, 64, 3), **change)
    assert error(conv(x), exactly(x, conv, 0, 0)) < LIMIT[HALF]


def test_parts_of_the_input_channels_add_up() -> None:
    x = numbers(2, 23, 96, dtype=HALF)
    first, second = slice(0, 64), slice(64, 96)
    for whole in (conv_of(HALF, 96, 3), Linear(numbers(50, 96, dtype=HALF, seed=1), numbers(50, dtype=HALF, seed=2))):
        parts = [
            whole.inputs(channels, bias=biased)(x[..., channels])
            for channels, biased in ((first, False), (second, True))
        ]
        assert error(parts[0] + parts[1], whole(x).double()) < 2 * LIMIT[HALF]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("inputs", [64, 20])  # for the kernel, for torch
def test_a_product_and_its_gelu_are_those_of_float64(inputs: int, rows: int, dtype: torch.dtype) -> None:
    weight, bias = numbers(50, inputs, dtype=dtype, seed=1), numbers(50, dtype=dtype, seed=2)
    x = numbers(rows, 23, inputs, dtype=dtype)
    for added in (bias, None):
        exact = F.linear(x.double(), weight.double(), None if added is None else added.double())
        layer = Linear(weight, added)
        assert error(layer(x), exact) < LIMIT[dtype]
        assert error(layer.gelu(x), F.gelu(exact)) < LIMIT[dtype]
    if dtype == HALF and inputs == 64:
        assert torch.equal(Linear(weight, bias)(x), project(x, weight, bias))
