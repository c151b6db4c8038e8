"""T3's blocks with int8 or float8 weights, by torchao. `linear` multiplies with them.

The head keeps its type: it is 2 to 6% of the weights, and its error would reach the logits undamped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chatterbox_engine.errors import ConfigError
from chatterbox_engine.kernels.device import cuda
from chatterbox_engine.t3.transformer import Transformer

FLOAT8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that multiply float8: Ada and Hopper."""

_SMALLEST = 1e-12  # rows of zeros get a scale too, or dividing by it would make NaN of them


def check_quantization(how: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuses a quantisation that the device does not support. Raises ConfigError."""
    if how != "float8":
        return
    able = device.type == "cuda" and cuda().capability(device) >= FLOAT8_CAPABILITY
    if not able or dtype != torch.bfloat16:
        raise ConfigError(
            "quantization is float8, which needs a GPU of compute capability 8.9 or more and bfloat16, "
            f"not {device} and {str(dtype).removeprefix('torch.')}"
        )


def quantize(model: Transformer, how: str) -> None:
    """Replaces the blocks' matrices."""
    for block in model.layers:
        for name in model.matrices:
            quantized = quantize_weight(getattr(block, name).data, how)
            setattr(block, name, nn.Parameter(quantized, requires_grad=False))
        block.prepare()


def quantize_weight(weight: Tensor, how: str) -> Tensor:
    """The matrix [outputs, inputs] as torchao's tensor, with one scale for each output.

    `int8`: the weights only. `float8`: the inputs are rounded as well, with one scale for each row, so that the device
    multiplies float8 and no row depends on another.
    """
    # an import of five to ten seconds, which most servers do without
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import Float8Tensor, Int8Tensor, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    if how == "int8":
        return Int8Tensor.from_hp(weight, granularity=PerRow())
    return Float8Tensor.from_hp(
        weight,
        granularity=PerRow(),
        hp_value_lb=_SMALLEST,
        mm_config=Float8MMConfig(use_fast_accum=True),
        act_quant_kwargs=QuantizeTensorToFloat8Kwargs(granularity=PerRow(), hp_value_lb=_SMALLEST),
    )
