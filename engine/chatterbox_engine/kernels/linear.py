"""Matrix products of the transformer, with plain or quantised weights.

`Projection` chooses its kernel when it is made, by the device and the type of the weights:

    weights             a decode step, [rows, inputs]            a prompt, [rows, length, inputs]
    GPU, two bytes      `linear_cuda` up to FEW_ROWS rows        torch
    GPU, float32        torch                                    torch
    CPU, bfloat16       `cpu`                                    torch, or `widened` where float32 is faster
    CPU, float32        `cpu`                                    torch
    CPU, float16        `cpu`                                    `cpu`
    quantised           `linear`                                 `linear`
    CPU, `packed`       oneDNN                                   oneDNN

With float16 weights the residual sums are float32, whose range they may need: a product with a norm takes float32 rows
and computes the norm in float32; one with a residual adds to float32.

On a CPU, MKL computes a product of few rows on one thread, and oneDNN repacks a bfloat16 matrix for every product: so
there are kernels of our own. torch.compile generates its kernels from torch's operators.

Quantised weights are torchao's. Its product with an int8 matrix first makes the whole matrix floating-point, which on a
CPU costs more than the product of a few rows. torch has a kernel for few rows that reads int8 directly: decode steps
use it, and prompts use torchao's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.kernels.processor import multiplies_bfloat16_faster
from chatterbox_engine.kernels.shapes import CPU_GRAIN, FEW_ROWS, SHIFT_ROWS, Activation

PACKED_ROWS = 64
"""Rows of the products that `packed` chooses its order for."""
WIDENED_ROWS = 16
WIDENED_OUTPUTS = 512
"""Of a matrix that is float32 at a time: they stay in the cache."""


class Projection:
    """A matrix of a layer and the operations fused with it: `residual + activation(norm(x) @ weight.T + bias)`."""

    def __init__(
        self,
        weight: Tensor,  # [outputs, inputs], twice as many outputs for swiglu
        bias: Tensor | None = None,  # [outputs]
        *,
        gain: Tensor | None = None,  # [inputs]; None: no norm
        shift: Tensor | None = None,  # [inputs]; None: the norm is a root-mean-square norm (arXiv 1910.07467)
        eps: float = 0.0,
        activation: Activation = "none",
    ) -> None:
        self.weight, self.bias = weight, bias
        self.gain, self.shift, self.eps = gain, shift, eps
        self.activation = activation
        self._plain_on_cuda = _plain_on_cuda(weight)
        self._kernel: Any = None  # a GPU's
        self._product: Any = None  # a CPU's
        if self._plain_on_cuda and weight.dtype in (torch.bfloat16, torch.float16):
            from chatterbox_engine.kernels import linear_cuda

            self._kernel = linear_cuda.project
        elif suits_cpu_kernel(weight):
            from chatterbox_engine.kernels.cpu.products import Product

            self._product = Product(weight, bias, gain=gain, shift=shift, eps=eps, activation=activation)
        self._product_takes_prompts = weight.dtype == torch.float16

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: [..., inputs], residual: [..., outputs]. Returns [..., outputs].

        In a decode step, where x is [rows, inputs], `residual` is overwritten by the result; a prompt's is not. On a
        GPU the kernel may read all but x and `residual` before the kernel that was launched last is done
        (`overlap_cuda`), which must have made none of the others.
        """
        if torch.compiler.is_compiling():
            return self._by_torch(x, residual)
        in_step = x.dim() == 2
        if self._product is not None and (in_step or self._product_takes_prompts):
            rows: Tensor = self._product(
                x, residual, None if in_step or residual is None else torch.empty_like(residual)
            )
            return rows
        if self._kernel is not None and in_step and len(x) <= FEW_ROWS:
            return self._by_cuda_kernel(x, residual)
        return self._by_torch(x, residual)

    def _by_cuda_kernel(self, x: Tensor, residual: Tensor | None) -> Tensor:
        gain, shift = self.gain, self.shift
        if shift is not None and len(x) > FEW_ROWS - SHIFT_ROWS:
            x, gain, shift = self._normed(x), None, None
        rows: Tensor = self._kernel(
            x,
            self.weight,
            self.bias,
            gain=gain,
            shift=shift,
            eps=self.eps,
            activation=self.activation,
            residual=residual,
        )
        return rows

    def _by_torch(self, x: Tensor, residual: Tensor | None) -> Tensor:
        x = self._normed(x)
        in_place = x.dim() == 2
        alone = self.activation == "none" and self.bias is None and not torch.compiler.is_compiling()
        if residual is not None and residual.dtype == x.dtype and in_place and alone and self._plain_on_cuda:
            return residual.addmm_(x, self.weight.T)
        y = self._activated(x)
        if residual is None:
            return y
        return residual.add_(y) if in_place else residual + y

    def _normed(self, x: Tensor) -> Tensor:
        if self.gain is None:
            return x
        gain, kept = self.gain.to(x.dtype), self.weight.dtype
        if self.shift is None:
            return F.rms_norm(x, gain.shape, gain, self.eps).to(kept)
        return F.layer_norm(x, gain.shape, gain, self.shift.to(x.dtype), self.eps).to(kept)

    def _activated(self, x: Tensor) -> Tensor:
        if self.activation == "gelu":
            return linear_gelu(x, self.weight, self.bias)
        x = linear(x, self.weight, self.bias)
        return _swiglu(x) if self.activation == "swiglu" else x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with a plain or quantised weight. x: [..., inputs], [rows, inputs] in a decode step."""
    if weight.is_mkldnn:
        rows: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return rows
    in_prompt = x.dim() > 2
    if weight.device.type == "cpu":
        if is_quantized(weight) and not in_prompt:
            quantized: Any = weight
            product = int8_rows(x, quantized.qdata, quantized.scale.flatten())
            return product if bias is None else product + bias
        if weight.dtype == torch.bfloat16 and not is_quantized(weight) and in_prompt and not _bfloat16_is_faster():
            return widened(x, weight, bias)
    return F.linear(x, weight, bias)


_bfloat16_is_faster = cache(multiplies_bfloat16_faster)


def widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of bfloat16 tensors in float32, to which a part of the matrix after the other is widened: on a
    processor that multiplies float32 faster, reading the matrix is little of a product of many rows. x: [..., inputs].

    A row has the same bits in every batch: MKL adds in the same order from `WIDENED_ROWS` rows on, and fewer are
    padded.
    """
    rows = x.flatten(0, -2)
    count, size = len(rows), weight.shape[1]
    wide = rows.new_zeros(max(count, WIDENED_ROWS), size, dtype=torch.float32)
    wide[:count] = rows
    result = wide.new_empty(len(wide), len(weight))
    part = wide.new_empty(min(WIDENED_OUTPUTS, len(weight)), size)
    for first in range(0, len(weight), WIDENED_OUTPUTS):
        narrow = weight[first : first + WIDENED_OUTPUTS]
        columns = slice(first, first + len(narrow))
        torch.mm(wide, part[: len(narrow)].copy_(narrow).T, out=result[:, columns])
    if bias is not None:
        result += bias
    return result[:count].to(x.dtype).unflatten(0, x.shape[:-1])


def packed(weight: Tensor) -> Tensor:
    """A matrix in oneDNN's own order, for products of many rows on a CPU: torch's reorder it every time, which took
    half of a product of 32 rows in float32. Elsewhere, quantised and in float16, which our kernel multiplies, it stays
    as it is.

    A row's bits are the same in products of 16, 32, ... rows.
    """
    plain = weight.device.type == "cpu" and not weight.is_mkldnn and not is_quantized(weight)
    if not plain or weight.dtype == torch.float16 or not torch.backends.mkldnn.is_available():
        return weight
    reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
    return reordered


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU, in its tanh form, of `linear(x, weight, bias)`; on a GPU the product's own kernel computes it."""
    if bias is not None and _plain_on_cuda(weight):
        flat: Tensor = torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True)
        return flat.unflatten(0, x.shape[:-1])
    return F.gelu(linear(x, weight, bias), approximate="tanh")


def _swiglu(x: Tensor) -> Tensor:
    """[..., 2 n] to [..., n]."""
    if x.is_cuda and not torch.compiler.is_compiling():
        from chatterbox_engine.kernels.linear_cuda import swiglu

        return swiglu(x)
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def suits_cpu_kernel(weight: Tensor) -> bool:
    """Whether `cpu.products.Product` takes the matrix."""
    if weight.device.type != "cpu" or weight.is_mkldnn or is_quantized(weight) or not weight.is_contiguous():
        return False
    grain = CPU_GRAIN.get(weight.dtype)
    return grain is not None and weight.shape[-1] % grain == 0


def _plain_on_cuda(weight: Tensor) -> bool:
    return weight.is_cuda and not is_quantized(weight)


def is_quantized(weight: Tensor) -> bool:
    """Whether torchao made it: only its tensors have this (importing torchao to ask for their type takes seconds)."""
    return hasattr(weight, "qdata")


# A custom operator, as inductor (torch 2.11) cannot compile what it calls together with what stands around it.
@torch.library.custom_op("chatterbox::int8_rows", mutates_args=())
def int8_rows(
    x: Tensor,  # [rows, inputs]
    weight: Tensor,  # [outputs, inputs] int8
    scale: Tensor,  # [outputs]
) -> Tensor:
    """The product with an int8 matrix on a CPU: [rows, outputs]. A row's bits do not depend on the other rows.

    torch's kernel is fast with bfloat16 rows only, and sums in float32. It is given no scales, as it would round them.
    """
    unscaled = torch.ones(len(weight), dtype=torch.bfloat16)
    return torch._weight_int8pack_mm(x.bfloat16(), weight, unscaled).to(x.dtype) * scale.to(x.dtype)


@int8_rows.register_fake
def _(x: Tensor, weight: Tensor, _scale: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))
