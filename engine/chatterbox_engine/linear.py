"""Matrix products of the transformer with weights laid out for the device.

On a CPU oneDNN lays a bfloat16 matrix out anew for every product, which takes as long as the product of a few rows.
Laid out once, the products have the same bits and take about half the time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 64  # what oneDNN chooses the layout for; it serves any number


def pack(weight: Tensor) -> Tensor:
    """The matrix [outputs, inputs] as `linear` multiplies it fastest: oneDNN's own layout for bfloat16 on a CPU."""
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.bfloat16
        or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    return packed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with a plain or a packed weight. x: [..., inputs]."""
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
