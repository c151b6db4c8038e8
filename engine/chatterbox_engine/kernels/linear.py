"""Matrix products of the transformer, with plain or quantised weights.

Few rows take kernels of our own, on a GPU (`linear_cuda`) and on a CPU (`cpu_kernels`): there MKL gives a product of
few rows to one thread alone, and oneDNN lays a bfloat16 matrix out anew for every product.

Quantised weights are torchao's. Its product of an int8 matrix makes the whole matrix floating-point first, which on a
CPU costs more than the product of a few rows. torch has a kernel that reads int8, and is made for few rows: decode
steps take it, prompts torchao's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.kernels.shapes import CPU_GRAIN, FEW_ROWS, SHIFT_ROWS, Activation


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with a plain or quantised weight. x: [..., inputs], [rows, inputs] in a decode step."""
    if weight.device.type == "cpu" and x.dim() == 2 and is_quantized(weight):
        quantized: Any = weight
        product = int8_rows(x, quantized.qdata, quantized.scale.flatten())
        return product if bias is None else product + bias
    return F.linear(x, weight, bias)


def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 0.0,
    then: Activation = "none",
    to: Tensor | None = None,
) -> Tensor:
    """`to + then(norm(x) @ weight.T + bias)`: what a layer does with one of its matrices.

    x: [..., inputs]; gain, shift, eps: of a layer norm, without a shift of a root-mean-square norm (arXiv 1910.07467),
    without a gain there is none; then: `gelu` in its tanh form, or `swiglu` (arXiv 2002.05202), SiLU of the first half
    of the outputs times the second; to: like the result, [..., outputs], and in a decode step on a GPU it becomes the
    result. There x is [rows, inputs], and few rows of bfloat16 take one kernel for all of it. It may read all but x and
    `to` before the kernel that was launched last is done (`overlap_cuda`), which must have made none of the others.
    """
    eager = not torch.compiler.is_compiling()  # the compiler makes kernels of its own from what follows
    if eager and x.dim() == 2 and len(x) <= FEW_ROWS and weight.dtype == torch.bfloat16 and _plain_on_cuda(weight):
        from chatterbox_engine.kernels import linear_cuda

        if shift is not None and len(x) > FEW_ROWS - SHIFT_ROWS:
            x, gain, shift = _norm(x, gain, shift, eps), None, None
        return linear_cuda.project(x, weight, bias, gain=gain, shift=shift, eps=eps, then=then, to=to)
    if eager and _for_cpu_kernel(x, weight):
        from chatterbox_engine.kernels import cpu as cpu_kernels

        flat = x.flatten(0, -2), None if to is None else to.flatten(0, -2)
        rows = cpu_kernels.project(flat[0], weight, bias, gain=gain, shift=shift, eps=eps, then=then, to=flat[1])
        return rows.unflatten(0, x.shape[:-1])
    x = _norm(x, gain, shift, eps)
    if then == "none" and to is not None and bias is None and eager and x.dim() == 2 and _plain_on_cuda(weight):
        return to.addmm_(x, weight.T)
    if then == "gelu":
        x = _gelu(x, weight, bias)
    else:
        x = linear(x, weight, bias)
        x = _swiglu(x) if then == "swiglu" else x
    return x if to is None else to + x


def _norm(x: Tensor, gain: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    if gain is None:
        return x
    if shift is None:
        return F.rms_norm(x, gain.shape, gain, eps)
    return F.layer_norm(x, gain.shape, gain, shift, eps)


def _gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU of `linear(x, weight, bias)`; on a GPU the product's own kernel computes it."""
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


def _for_cpu_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether our own kernel is the fastest: of a step, and of a prompt in bfloat16 if the processor has none."""
    if weight.device.type != "cpu" or is_quantized(weight) or x.shape[-1] % CPU_GRAIN or x.dtype != weight.dtype:
        return False
    if weight.dtype not in (torch.float32, torch.bfloat16) or not weight.is_contiguous():
        return False
    return x.dim() == 2 or (weight.dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported())


def _plain_on_cuda(weight: Tensor) -> bool:
    return weight.is_cuda and not is_quantized(weight)


def is_quantized(weight: Tensor) -> bool:
    """Whether torchao made it: only its tensors have this (importing torchao to ask for their type takes seconds)."""
    return hasattr(weight, "qdata")


# An operator of our own, as inductor (torch 2.11) fails to compile what it calls behind anything else.
@torch.library.custom_op("chatterbox::int8_rows", mutates_args=())
def int8_rows(
    x: Tensor,  # [rows, inputs]
    weight: Tensor,  # [outputs, inputs] int8
    scale: Tensor,  # [outputs]
) -> Tensor:
    """The product of an int8 matrix on a CPU: [rows, outputs], each row with the same bits in any company.

    torch's kernel is fast with bfloat16 rows only, and sums in float32. It is given no scales, as it would round them.
    """
    unscaled = torch.ones(len(weight), dtype=torch.bfloat16)
    return torch._weight_int8pack_mm(x.bfloat16(), weight, unscaled).to(x.dtype) * scale.to(x.dtype)


@int8_rows.register_fake
def _(x: Tensor, weight: Tensor, _scale: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))
