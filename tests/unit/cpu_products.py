"""A product by the CPU kernel in one call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chatterbox_engine.kernels.cpu.products import Product


def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    **fused: Any,
) -> Tensor:
    """fused: what `Product` takes besides."""
    return Product(weight, bias, **fused)(x, residual, out)
