"""The layers that the three networks share. Tensors are [rows, positions, channels], contiguous.

In that layout a convolution is a two-dimensional one in channels-last memory, without a copy. Measured on a Zen 5 core:
240 GFLOP/s in float32 against 55 to 230 for [rows, channels, positions], depending on kernel and width; it is also the
native layout of tensor cores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.kernels.linear import linear_gelu, suits_cpu_kernel
from chatterbox_engine.kernels.shapes import ATTENTION_GRAIN, Activation

_HEADS_AT_A_TIME = 2


def on_gpu(x: Tensor) -> bool:
    """Whether Triton kernels are used, and cuDNN's convolutions. A test patches this and interprets the kernels."""
    return x.is_cuda


@dataclass(frozen=True)
class Linear:
    """`x @ weight.T + bias` over the last dimension."""

    weight: Tensor  # [outputs, inputs]
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of it. x: [rows, positions, inputs].

        With weights of two bytes on a GPU, and of float16 on a CPU, the product's own kernel computes it, in its tanh
        form, so that the flow's widest tensor is written once and not read again. The form changes a mel by 1.3e-4,
        bfloat16 by 8.7e-3.
        """
        if x.device.type == "cuda" and x.dtype != torch.float32:
            return linear_gelu(x, self.weight, self.bias)
        if _in_half(x, self.weight):
            return _product(x, self.weight, self.bias, "gelu")
        return F.gelu(self(x))

    def inputs(self, channels: slice, *, bias: bool) -> Linear:
        """The part of the result that comes from some of the input channels."""
        return Linear(self.weight[:, channels].contiguous(), self.bias if bias else None)


@dataclass(frozen=True)
class Norm:
    """Layer norm over the last dimension."""

    weight: Tensor  # [width]
    bias: Tensor  # [width]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        if on_gpu(x):
            from chatterbox_engine.s3gen.norm_cuda import norm

            return norm(x, self._gains)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def of_sum(self, x: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """`x + change`, and the norm of it; both [rows, positions, width]. One kernel on a GPU."""
        if on_gpu(x):
            from chatterbox_engine.s3gen.norm_cuda import add_norm

            return add_norm(x, change, self._gains)
        x = x + change
        return x, self(x)

    def mish(self, x: Tensor, after: Tensor, *, offset: Tensor | None = None, lead: int = 0) -> Tensor:
        """Mish of the norm of `x + offset`, plus `after`: like x, [rows, positions, width], or [width]; after `lead`
        positions of zeros. One kernel on a GPU."""
        if on_gpu(x):
            from chatterbox_engine.s3gen.norm_cuda import norm_mish

            return norm_mish(x, self._gains, after, offset=offset, lead=lead)
        result = mish(self(x if offset is None else x + offset)) + after
        return F.pad(result, (0, 0, lead, 0)) if lead else result

    def mish_norm(self, x: Tensor, after: Tensor, following: Norm, *, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """`mish` without a lead, and the following norm of it. One kernel on a GPU."""
        if on_gpu(x):
            from chatterbox_engine.s3gen.norm_cuda import norm_mish_norm

            return norm_mish_norm(x, self._gains, after, following._gains, offset=offset)
        x = self.mish(x, after, offset=offset)
        return x, following(x)

    @property
    def _gains(self) -> tuple[Tensor, Tensor, float]:
        return self.weight, self.bias, self.eps


@dataclass(frozen=True)
class Conv:
    """A convolution along positions, padded with zeros."""

    weight: Tensor  # [outputs, inputs, kernel]
    bias: Tensor | None
    dilation: int = 1
    stride: int = 1
    padding: int = 0  # on both sides

    def __call__(self, x: Tensor, *, left: int = 0, right: int = 0) -> Tensor:
        """left, right: zeros in addition to `padding`."""
        return self._product(x, self.bias, left, right)

    def in_parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The result, and a bias [outputs] that is still to be added: on a GPU, where adding it would be a kernel of
        its own, so that the next kernel adds it. None on a CPU."""
        if on_gpu(x):
            return self._product(x, None, 0, 0), self.bias
        return self._product(x, self.bias, 0, 0), None

    def causal_in_parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """`causal` in two parts, as `in_parts`. On a GPU cuDNN pads both sides itself, which needs no kernel, and the
        outputs of the padding at the end are left out: rows of the result are further apart than their length.
        """
        if on_gpu(x):
            both = replace(self, padding=self.history)
            return both._product(x, None, 0, 0)[:, : x.shape[1]], self.bias
        return self.causal(x), None

    def _product(self, x: Tensor, bias: Tensor | None, left: int, right: int) -> Tensor:
        x = F.pad(x, (0, 0, left, right)) if left or right else x
        if self.padding == 0 and self.dilation == self.stride == 1 and _in_half(x, self.weight):
            return linear(windows(x, self.weight.shape[2]), self._matrix, bias)
        padding, dilation = (0, self.padding), (1, self.dilation)
        return _rows(F.conv2d(_image(x), self.weight.unsqueeze(2), bias, (1, self.stride), padding, dilation))

    @property
    def _matrix(self) -> Tensor:
        """The weight as that of a product with a window: [outputs, kernel * inputs]."""
        return self.weight.transpose(1, 2).flatten(1)

    @property
    def history(self) -> int:
        """Positions before an output that a causal convolution reads; zeros before the first."""
        return self.weight.shape[2] - 1

    def causal(self, x: Tensor) -> Tensor:
        """The same convolution over a position and those before it."""
        return self(x, left=self.history)

    def inputs(self, channels: slice, *, bias: bool) -> Conv:
        """The part of the result that comes from some of the input channels."""
        return Conv(image_weight(self.weight[:, channels]), self.bias if bias else None)


@dataclass(frozen=True)
class ConvTransposed:
    """A transposed convolution along positions, of which there are `stride` times as many afterwards."""

    weight: Tensor  # [inputs, outputs, kernel]
    bias: Tensor
    stride: int

    def __call__(self, x: Tensor) -> Tensor:
        padding = (self.weight.shape[2] - self.stride) // 2
        weight = self.weight.unsqueeze(2)
        return _rows(F.conv_transpose2d(_image(x), weight, self.bias, (1, self.stride), (0, padding)))


def image_weight(weight: Tensor) -> Tensor:
    """The same weight, [outputs, inputs, kernel], in the memory order that is fast for convolutions."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`, x: [rows, positions, inputs].

    torch gives float32 products on a CPU to MKL, which is half as fast as oneDNN where the CPU is not Intel's (Zen 5:
    226 against 480 GFLOP/s on two cores); a convolution of kernel 1 goes to oneDNN.
    """
    if _in_half(x, weight):
        return _product(x, weight, bias)
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.ndim == 3:
        return _rows(F.conv2d(_image(x), weight[:, :, None, None], bias))
    return F.linear(x, weight, bias)


def _in_half(x: Tensor, weight: Tensor) -> bool:
    """Whether a weight is float16 on a CPU, where our kernel multiplies it with rows of float16 or float32."""
    return weight.dtype == torch.float16 and x.device.type == "cpu"


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> Tensor:
    """A product with a float16 weight on a CPU, of x's type."""
    if not suits_cpu_kernel(weight):
        y = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        return F.gelu(y, approximate="tanh") if activation == "gelu" else y
    from chatterbox_engine.kernels.cpu.products import Product

    return Product(weight, bias, activation=activation)(x, out=x.new_empty(*x.shape[:-1], len(weight)))


def windows(x: Tensor, size: int) -> Tensor:
    """All runs of `size` neighbouring positions, seen as rows without a copy: [rows, positions, channels] to
    [rows, positions - size + 1, size * channels]."""
    rows, positions, channels = x.shape
    x = x.contiguous()
    return x.as_strided((rows, positions - size + 1, size * channels), (positions * channels, channels, 1))


def self_attention(qkv: Tensor, lengths: Tensor | None) -> Tensor:
    """Attention of every row to its own positions.

    qkv: [rows, positions, 3, heads, size], contiguous; lengths: [rows], None on a CPU when every row is full.
    Returns [rows, positions, width].
    """
    if qkv.device.type == "cuda":
        from chatterbox_engine.s3gen.attention_cuda import attend

        assert lengths is not None
        attended: Tensor = attend(qkv, lengths)
        return attended
    if qkv.dtype == torch.float16 and qkv.shape[-1] % ATTENTION_GRAIN == 0:
        from chatterbox_engine.kernels.cpu.attention import attention as on_cpu

        rows, size = qkv.shape[:2]
        return on_cpu(qkv, torch.full((rows,), size) if lengths is None else lengths)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if lengths is None:
        return attention(q, k, v, None)
    # cropped to its length a row needs no mask, with which torch's kernel takes a third longer
    ends = enumerate(lengths.tolist())
    return torch.cat([attention(q[i, None], k[i, None, :, :end], v[i, None, :, :end], None) for i, end in ends])


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention over all positions.

    q, k, v: [rows, heads, positions, size]; mask: added to the scores, [rows, heads or 1, positions or 1, positions].
    Returns [rows, positions, width].
    torch's fused kernel is slower than its parts in bfloat16 on a CPU, so there it is computed for a few heads at a
    time: their scores stay in the cache, and are small enough that malloc keeps their pages instead of returning them.
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    q, k, v = (q * q.shape[3] ** -0.5).contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    for row in range(q.shape[0]):
        for first in range(0, q.shape[1], _HEADS_AT_A_TIME):
            some = slice(first, first + _HEADS_AT_A_TIME)
            scores = torch.bmm(q[row, some], k[row, some].mT)
            if mask is not None:
                scores.add_(mask[row] if mask.shape[1] == 1 else mask[row, some])
            torch.bmm(scores.softmax(-1), v[row, some], out=out[row, some])
    return out.transpose(1, 2).flatten(2)


def mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)); torch's own is not vectorised on a CPU (1.0 against 0.4 ms for 333,000 numbers)."""
    if x.device.type != "cpu":
        return F.mish(x)
    wide = x.float()
    power = wide.clamp(max=20.0).exp_()  # beyond 20 the result is x in float32
    ratio = torch.addcmul(2 * power, power, power)
    return (wide * ratio).div_(ratio.add_(2.0)).to(x.dtype)


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True where a position belongs to its row. lengths: [rows] int64; result: [rows, size] bool."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def key_mask(lengths: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """What attention adds to the scores: zero, or minus infinity for padding. Returns [rows, 1, 1, size]."""
    inside = length_mask(lengths, size)[:, None, None]
    return torch.zeros(inside.shape, dtype=dtype, device=lengths.device).masked_fill(~inside, -math.inf)


def cut(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zeroes the padding of the rows. mask: [rows, positions, 1], or None when no row is padded."""
    return x if mask is None else x * mask


def _image(x: Tensor) -> Tensor:
    """[rows, positions, channels] seen as [rows, channels, 1, positions]."""
    return x.unsqueeze(1).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """[rows, channels, 1, positions] seen as [rows, positions, channels]."""
    return x.permute(0, 2, 3, 1).squeeze(1)
