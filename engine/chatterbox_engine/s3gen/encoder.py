"""Speech tokens to mel-rate features: a conformer without convolution modules, upsampled two to one half way.

Follows upstream `transformer/upsample_encoder.py`; relative positions as in Transformer-XL (arXiv 1901.02860).
Tensors are [rows, positions, width]. A row of a padded batch equals the row alone: the lookahead convolution is the
only layer that reads to the right, attention masks the keys, everything else its own position or those to the left.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.s3gen.layers import Linear, attention, cut, key_mask, length_mask, linear
from chatterbox_engine.s3gen.weights import Weights

_LOOKAHEAD = 3
_QUERIES = 128
"""Queries whose scores a CPU computes in one go: they stay in the cache, and half of the distances are skipped."""


class Encoder:
    """Token ids to the mean of the flow, 80 values per mel frame.

    Computed in the weights' type; beside float16 in float32, as the demo voice's activations exceed float16's range. In
    bfloat16 the mean is 1% off, which the mel does not show (0.0125 from float32 with a bfloat16 flow, both after a
    float32 and after a bfloat16 encoder; full size, random weights).
    """

    def __init__(self, weights: Weights, dims: S3GenDims) -> None:
        """weights: the `flow` part."""
        width, encoder = dims.encoder, weights.part("encoder")
        table = weights.take("input_embedding.weight", dims.vocab, width)
        self._table = _Embed(encoder.part("embed"), width)(table)  # per token, so applied to the whole vocabulary here
        ahead = encoder.part("pre_lookahead_layer")
        self._ahead = ahead.conv("conv1", width, width, _LOOKAHEAD + 1)
        self._conv = ahead.conv("conv2", width, width, 3)
        self._layers = [_Layer(encoder.part(f"encoders.{i}"), dims) for i in range(dims.encoder_blocks)]
        self._up = encoder.conv("up_layer.conv", width, width, 5)
        self._up_embed = _Embed(encoder.part("up_embed"), width)
        self._up_layers = [_Layer(encoder.part(f"up_encoders.{i}"), dims) for i in range(dims.encoder_up_blocks)]
        self._norm = encoder.norm("after_norm", width)
        self._project = weights.linear("encoder_proj", width, dims.mel)

    def __call__(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """Encodes padded rows.

        tokens: [rows, n] int64; lengths: [rows], None when every row has n. Returns [rows, 2 n, mel].
        """
        x = F.embedding(tokens, self._table)
        x = cut(x, None if lengths is None else length_mask(lengths, x.shape[1])[..., None])
        x = x + self._conv.causal(F.leaky_relu(self._ahead(x, right=_LOOKAHEAD)))
        x = _run(self._layers, x, lengths)
        x = self._up.causal(x.repeat_interleave(2, dim=1))
        x = _run(self._up_layers, self._up_embed(x), None if lengths is None else 2 * lengths)
        return self._project(self._norm(x))


class _Embed:
    """Linear, layer norm, and the scale that relative positions expect."""

    def __init__(self, weights: Weights, width: int) -> None:
        self._linear = weights.linear("out.0", width, width)
        self._norm = weights.norm("out.1", width)
        self._scale = math.sqrt(width)

    def __call__(self, x: Tensor) -> Tensor:
        return self._norm(self._linear(x)) * self._scale


class _Layer:
    """Self-attention with relative positions, then a feed-forward layer, each with a norm before it."""

    def __init__(self, weights: Weights, dims: S3GenDims) -> None:
        width, units = dims.encoder, dims.encoder_units
        self._heads, self._size = dims.encoder_heads, dims.encoder // dims.encoder_heads
        attention = weights.part("self_attn")
        parts = [attention.linear(f"linear_{name}", width, width) for name in "qkv"]
        biases = [part.bias for part in parts if part.bias is not None]
        self._qkv = Linear(torch.cat([part.weight for part in parts]), torch.cat(biases))
        self._out = attention.linear("linear_out", width, width)
        self._position = attention.take("linear_pos.weight", width, width)
        self._content_bias = attention.take("pos_bias_u", self._heads, self._size)[:, None]
        self._position_bias = attention.take("pos_bias_v", self._heads, self._size)[:, None]
        self._norm_attention = weights.norm("norm_mha", width, eps=1e-12)
        self._norm_units = weights.norm("norm_ff", width, eps=1e-12)
        self._units_in = weights.linear("feed_forward.w_1", width, units)
        self._units_out = weights.linear("feed_forward.w_2", units, width)

    def __call__(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self._attend(self._norm_attention(x), positions, mask)
        return x + self._units_out(F.silu(self._units_in(self._norm_units(x))))

    def _attend(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """positions: [1, 2 n - 1, width]; mask: [rows, 1, 1, n], zero or minus infinity."""
        q, k, v = self._qkv(x).unflatten(-1, (3, self._heads, self._size)).permute(2, 0, 3, 1, 4)
        p = linear(positions, self._position, None).unflatten(-1, (self._heads, self._size)).transpose(1, 2)
        p = p.contiguous()  # a head's rows lie apart, and MKL takes five times as long with them
        size = x.shape[1]
        some = size if x.is_cuda else _QUERIES
        mixed = []
        for first in range(0, size, some):
            queries = q[:, :, first : first + some]
            count = queries.shape[2]
            distances = p[:, :, size - count - first : 2 * size - 1 - first]  # to their keys
            bias = _by_key((queries + self._position_bias) @ distances.mT, size) / math.sqrt(self._size)
            if mask is not None:
                bias = bias + mask
            mixed.append(attention(queries + self._content_bias, k, v, bias))
        return self._out(torch.cat(mixed, dim=1))


def _run(layers: list[_Layer], x: Tensor, lengths: Tensor | None) -> Tensor:
    positions = _relative_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
    mask = None if lengths is None else key_mask(lengths, x.shape[1], x.dtype)
    for layer in layers:
        x = layer(x, positions, mask)
    return x


def _relative_positions(size: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of the distances size - 1 down to 1 - size. Returns [1, 2 size - 1, width]."""
    distance = torch.arange(size - 1, -size, -1, device=device, dtype=torch.float32)
    step = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    angle = distance[:, None] * torch.exp(step * -(math.log(10_000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None]


def _by_key(scores: Tensor, keys: int) -> Tensor:
    """Scores by distance, [rows, heads, n, keys + n - 1], seen as those by key, [rows, heads, n, keys], without a copy.

    Key j of query i lies at n - 1 - i + j: one step further left in every next query.
    """
    queries, distances = scores.shape[2:]
    if queries == 1:
        return scores
    flat = scores.flatten(2)[..., queries - 1 : queries - 1 + queries * (distances - 1)]
    return flat.unflatten(-1, (queries, distances - 1))[..., :keys]
