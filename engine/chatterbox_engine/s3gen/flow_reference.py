"""The flow step by step, in float32 and torch's operators: what `flow` computes, without how it is made fast.

Tests compare the two. Names of the layers are the checkpoint's; tensors are [rows, frames, width].
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.s3gen.flow import GUIDANCE, embed_times, schedule
from chatterbox_engine.s3gen.layers import key_mask
from chatterbox_engine.s3gen.weights import Weights


class ReferenceFlow:
    """As `flow.Flow`."""

    def __init__(self, weights: Weights, dims: S3GenDims, steps: int) -> None:
        """weights: the `flow.decoder.estimator` part."""
        self._guided = not dims.meanflow
        self._times = schedule(steps, cosine=self._guided)
        self._embedded = embed_times(weights, dims, self._times)  # [steps, time width]
        width, inputs = dims.decoder, 4 * dims.mel
        self._down = _Stage(weights.part("down_blocks.0"), dims, inputs)
        self._down_conv = weights.conv("down_blocks.0.2", width, width, 3)
        self._middle = [_Stage(weights.part(f"mid_blocks.{i}"), dims, width) for i in range(dims.decoder_mid_blocks)]
        self._up = _Stage(weights.part("up_blocks.0"), dims, 2 * width)
        self._up_conv = weights.conv("up_blocks.0.2", width, width, 3)
        self._final = weights.conv("final_block.block.0", width, width, 3)
        self._final_norm = weights.norm("final_block.block.2", width)
        self._out = weights.pointwise("final_proj", width, dims.mel)

    def __call__(self, noise: Tensor, mean: Tensor, speaker: Tensor, prompt: Tensor, lengths: Tensor) -> Tensor:
        """Euler steps from noise to mel; with classifier-free guidance, two networks' values a step."""
        given = torch.cat([mean, speaker[:, None].expand_as(mean), prompt], dim=-1)
        x = noise
        for step, (now, then) in enumerate(pairwise(self._times)):
            change = self._unet(x, given, step, lengths)
            if self._guided:
                unconditional = self._unet(x, torch.zeros_like(given), step, lengths)
                change = (1 + GUIDANCE) * change - GUIDANCE * unconditional
            x = x + (then - now) * change
        return x

    def _unet(self, x: Tensor, given: Tensor, step: int, lengths: Tensor) -> Tensor:
        time = self._embedded[step]
        x = self._down(torch.cat([x, given], dim=-1), time, lengths)
        skip = x
        x = self._down_conv.causal(x)
        for stage in self._middle:
            x = stage(x, time, lengths)
        x = self._up(torch.cat([x, skip], dim=-1), time, lengths)
        x = self._up_conv.causal(x)
        return self._out(F.mish(self._final_norm(self._final.causal(x))))


class _Stage:
    """A residual block of convolutions, then transformer blocks."""

    def __init__(self, weights: Weights, dims: S3GenDims, inputs: int) -> None:
        self._resnet = _Resnet(weights.part("0"), inputs, dims.decoder, 4 * dims.decoder)
        self._blocks = [_Block(weights.part(f"1.{i}"), dims) for i in range(dims.decoder_blocks)]

    def __call__(self, x: Tensor, time: Tensor, lengths: Tensor) -> Tensor:
        x = self._resnet(x, time)
        for block in self._blocks:
            x = block(x, lengths)
        return x


class _Resnet:
    """Two convolutions with norm and Mish, the time added between them, and a linear skip connection."""

    def __init__(self, weights: Weights, inputs: int, outputs: int, time: int) -> None:
        self._conv1 = weights.conv("block1.block.0", inputs, outputs, 3)
        self._norm1 = weights.norm("block1.block.2", outputs)
        self._conv2 = weights.conv("block2.block.0", outputs, outputs, 3)
        self._norm2 = weights.norm("block2.block.2", outputs)
        self._time = weights.linear("mlp.1", time, outputs)
        self._skip = weights.pointwise("res_conv", inputs, outputs)

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.mish(self._norm1(self._conv1.causal(x))) + self._time(F.mish(time))
        return F.mish(self._norm2(self._conv2.causal(h))) + self._skip(x)


class _Block:
    """Attention over all frames, then a feed-forward layer, each with a norm before it."""

    def __init__(self, weights: Weights, dims: S3GenDims) -> None:
        width, self._heads = dims.decoder, dims.decoder_heads
        inner = self._heads * dims.decoder_head_dim
        self._norm1, self._norm3 = weights.norm("norm1", width), weights.norm("norm3", width)
        self._qkv = [weights.take(f"attn1.to_{name}.weight", inner, width) for name in "qkv"]
        self._out = weights.linear("attn1.to_out.0", inner, width)
        self._units_in = weights.linear("ff.net.0.proj", width, 4 * width)
        self._units_out = weights.linear("ff.net.2", 4 * width, width)

    def __call__(self, x: Tensor, lengths: Tensor) -> Tensor:
        normed = self._norm1(x)
        q, k, v = (F.linear(normed, weight).unflatten(-1, (self._heads, -1)).transpose(1, 2) for weight in self._qkv)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask(lengths, x.shape[1], x.dtype))
        x = x + self._out(mixed.transpose(1, 2).flatten(2))
        return x + self._units_out(F.gelu(self._units_in(self._norm3(x))))
