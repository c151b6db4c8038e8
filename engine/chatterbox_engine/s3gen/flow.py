"""Features to mel: the flow-matching UNet and its Euler solver.

Follows upstream `decoder.py` (one channel level, so no change of length) and `flow_matching.py`. Tensors are
[rows, frames, width]. Only the attention keys need a mask: all convolutions are causal.

`flow_reference` has the same network in plain steps. Here it is arranged for speed:

- What does not change between steps is computed once: time embeddings and their projections when the weights are
  loaded, and per solve the first convolution of mean, speaker and prompt. That is linear, so a step adds only the part
  of the noisy mel, which is the same for both halves of classifier-free guidance.
- Both halves are one batch: conditional rows first, then unconditional ones.
- A residual sum, and the bias of a convolution, are computed by the norm that follows (`Norm.of_sum`, `mish`,
  `mish_norm`), one kernel on a GPU. So a block returns its last sum in two parts, and a residual block returns its
  result together with the norm that the next block begins with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.s3gen.layers import Conv, Linear, Norm, mish, self_attention
from chatterbox_engine.s3gen.weights import Weights

GUIDANCE = 0.7
_TIME_SCALE = 1000.0


class Flow:
    """Solves the flow from noise to mel in a fixed number of steps; the UNet in `dtype`, the state in float32."""

    def __init__(self, weights: Weights, dims: S3GenDims, dtype: torch.dtype, steps: int) -> None:
        """weights: the `flow.decoder.estimator` part."""
        self._guided = not dims.meanflow
        self._times = schedule(steps, cosine=self._guided)
        self._dtype = dtype
        self._unet = _UNet(weights.cast(dtype), dims, self._times)

    def __call__(self, noise: Tensor, mean: Tensor, speaker: Tensor, prompt: Tensor, lengths: Tensor | None) -> Tensor:
        """Solves padded rows.

        noise, mean: [rows, frames, mel]; speaker: [rows, mel]; prompt: like noise, zero after the prompt; lengths:
        [rows] frames, None when every row is full. Returns the mel of prompt and utterance, like noise, float32.
        """
        constant = torch.cat([mean, speaker[:, None].expand_as(mean), prompt], dim=-1).to(self._dtype)
        fixed = self._unet.prepare(constant, guided=self._guided)
        lengths = torch.cat([lengths, lengths]) if lengths is not None and self._guided else lengths
        x = noise
        for step, (now, then) in enumerate(pairwise(self._times)):
            change, span = self._unet(x.to(self._dtype), fixed, step, lengths), then - now
            if self._guided:  # in float32, as x
                conditional, unconditional = change.chunk(2)
                x = x.add(conditional, alpha=span * (1.0 + GUIDANCE)).sub_(unconditional, alpha=span * GUIDANCE)
            else:
                x = x.add(change, alpha=span)
        return x


class _UNet:
    """The network: the mel's rate of change at one of the solver's times."""

    def __init__(self, weights: Weights, dims: S3GenDims, times: list[float]) -> None:
        width, inputs = dims.decoder, 4 * dims.mel
        embedded = embed_times(weights.cast(torch.float32), dims, times)
        self._down = _Resnet(weights, "down_blocks.0.0", inputs, width, embedded)
        self._enter_noisy, self._enter_fixed = self._down.enter.split(dims.mel)
        self._down_blocks = _blocks(weights.part("down_blocks.0.1"), dims)
        self._down_conv = weights.conv("down_blocks.0.2", width, width, 3)
        self._middle = [
            (
                _Resnet(weights, f"mid_blocks.{i}.0", width, width, embedded),
                _blocks(weights.part(f"mid_blocks.{i}.1"), dims),
            )
            for i in range(dims.decoder_mid_blocks)
        ]
        self._up = _Resnet(weights, "up_blocks.0.0", 2 * width, width, embedded)
        self._up_blocks = _blocks(weights.part("up_blocks.0.1"), dims)
        self._up_conv = weights.conv("up_blocks.0.2", width, width, 3)
        self._final = weights.conv("final_block.block.0", width, width, 3)
        self._final_norm = weights.norm("final_block.block.2", width)
        self._nothing = torch.zeros_like(self._final_norm.bias)
        self._out = weights.pointwise("final_proj", width, dims.mel)

    def prepare(self, constant: Tensor, *, guided: bool) -> tuple[Tensor, Tensor]:
        """What mean, speaker and prompt add to the first layer. constant: [rows, frames, 3 mel]."""
        if guided:  # the unconditional half has none of them
            constant = torch.cat([constant, torch.zeros_like(constant)])
        return self._enter_fixed(constant)

    def __call__(self, x: Tensor, fixed: tuple[Tensor, Tensor], step: int, lengths: Tensor | None) -> Tensor:
        """x: [rows, frames, mel]; fixed: what `prepare` returned. Returns [rows or 2 rows, frames, mel]."""
        # the noisy mel's part is added to both halves
        first, skipped = (
            (part + other.unflatten(0, (-1, len(part)))).flatten(0, 1)
            for part, other in zip(self._enter_noisy(x), fixed, strict=True)
        )
        skip = _run(self._down_blocks, *self._down.leave(first, skipped, step, self._down_blocks[0].norm), lengths)
        h = self._down_conv.causal(skip)
        for resnet, blocks in self._middle:
            h = _run(blocks, *resnet(h, step, blocks[0].norm), lengths)
        h = _run(self._up_blocks, *self._up(torch.cat([h, skip], dim=-1), step, self._up_blocks[0].norm), lengths)
        h, bias = self._final.causal_in_parts(self._up_conv.causal(h))
        return self._out(self._final_norm.mish(h, self._nothing, offset=bias))


@dataclass(frozen=True)
class _Enter:
    """The first convolution of a residual block and its linear skip connection."""

    first: Conv
    skip: Linear

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first.causal(x), self.skip(x)

    def split(self, channels: int) -> tuple[_Enter, _Enter]:
        """The parts of the first input channels, and of the other channels with the biases: their sum is the whole."""
        front, back = slice(0, channels), slice(channels, None)
        return (
            _Enter(self.first.inputs(front, bias=False), self.skip.inputs(front, bias=False)),
            _Enter(self.first.inputs(back, bias=True), self.skip.inputs(back, bias=True)),
        )


class _Resnet:
    """Two convolutions with norm and Mish, the time added between them, and a linear skip connection."""

    def __init__(self, weights: Weights, name: str, inputs: int, outputs: int, embedded: Tensor) -> None:
        """embedded: [steps, time width] float32, of which the block's own projection is computed here."""
        part = weights.part(name)
        self.enter = _Enter(
            part.conv("block1.block.0", inputs, outputs, 3), part.pointwise("res_conv", inputs, outputs)
        )
        self._first_norm = part.norm("block1.block.2", outputs)
        self._second = part.conv("block2.block.0", outputs, outputs, 3)
        self._second_norm = part.norm("block2.block.2", outputs)
        project = part.cast(torch.float32).linear("mlp.1", embedded.shape[1], outputs)
        self._times = project(mish(embedded)).to(self._second.weight.dtype)  # [steps, outputs]

    def __call__(self, x: Tensor, step: int, following: Norm) -> tuple[Tensor, Tensor]:
        """The result, and the following norm of it."""
        first, bias = self.enter.first.causal_in_parts(x)
        return self.leave(first, self.enter.skip(x), step, following, bias)

    def leave(
        self, first: Tensor, skipped: Tensor, step: int, following: Norm, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Everything after `enter`, whose two results are `first` and `skipped`. bias: still to be added to `first`."""
        h = self._first_norm.mish(first, self._times[step], offset=bias, lead=self._second.history)
        second, bias = self._second.in_parts(h)
        return self._second_norm.mish_norm(second, skipped, following, offset=bias)


class _Block:
    """Attention over all frames, then a feed-forward layer, each with a norm before it."""

    def __init__(self, weights: Weights, dims: S3GenDims) -> None:
        width, self._heads, self._size = dims.decoder, dims.decoder_heads, dims.decoder_head_dim
        inner = self._heads * self._size
        self.norm = weights.norm("norm1", width)
        self._qkv = Linear(torch.cat([weights.take(f"attn1.to_{name}.weight", inner, width) for name in "qkv"]), None)
        self._attention_out = weights.linear("attn1.to_out.0", inner, width)
        self._norm_units = weights.norm("norm3", width)
        self._units_in = weights.linear("ff.net.0.proj", width, 4 * width)
        self._units_out = weights.linear("ff.net.2", 4 * width, width)

    def __call__(self, x: Tensor, normed: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """normed: `norm` of x. Returns the block's result in two parts that are still to be added."""
        qkv = self._qkv(normed).unflatten(-1, (3, self._heads, self._size))
        x, normed = self._norm_units.of_sum(x, self._attention_out(self_attention(qkv, lengths)))
        return x, self._units_out(self._units_in.gelu(normed))


def _blocks(weights: Weights, dims: S3GenDims) -> list[_Block]:
    return [_Block(weights.part(str(i)), dims) for i in range(dims.decoder_blocks)]


def _run(blocks: list[_Block], x: Tensor, normed: Tensor, lengths: Tensor | None) -> Tensor:
    """Blocks one after the other; the sum at the end of each is computed with the next one's first norm. normed: the
    first one's norm of x."""
    for block, following in pairwise(blocks):
        x, normed = following.norm.of_sum(*block(x, normed, lengths))
    x, change = blocks[-1](x, normed, lengths)
    return x + change


def schedule(steps: int, *, cosine: bool) -> list[float]:
    """The times of the Euler steps, from 0 to 1: steps + 1 of them."""
    times = torch.linspace(0, 1, steps + 1)
    return (1 - torch.cos(times * 0.5 * torch.pi) if cosine else times).tolist()


def embed_times(weights: Weights, dims: S3GenDims, times: list[float]) -> Tensor:
    """The embedding of every step's start, mixed with its end's for MeanFlow. Returns [steps, 4 decoder]."""
    inputs, width = 4 * dims.mel, 4 * dims.decoder
    first, second = (
        weights.linear("time_mlp.linear_1", inputs, width),
        weights.linear("time_mlp.linear_2", width, width),
    )
    half = torch.arange(inputs // 2, device=first.weight.device, dtype=torch.float32)
    rates = torch.exp(half * -(math.log(10_000.0) / (inputs // 2 - 1)))
    angle = _TIME_SCALE * torch.tensor(times, device=rates.device)[:, None] * rates
    embedded = second(F.silu(first(torch.cat([angle.sin(), angle.cos()], dim=-1))))
    if not dims.meanflow:
        return embedded[:-1]
    mixer = weights.take("time_embed_mixer.weight", width, 2 * width)
    return F.linear(torch.cat([embedded[:-1], embedded[1:]], dim=-1), mixer)
