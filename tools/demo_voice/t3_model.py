"""Upstream's T3 for training: compact tables of speech tokens, and a forward that returns what the losses need."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_engine.checkpoint.dims import LlamaDims
from chatterbox_engine.t3.llama import rotations
from tests.fidelity import upstream
from tools.demo_voice.phones import PHONES, token_ids
from tools.demo_voice.sizes import DIMS

assert isinstance(DIMS.t3, LlamaDims)
T3 = DIMS.t3
GUIDED_LAYERS, GUIDED_HEAD = (1, 2), 1
"""Whose attention is returned."""
AUXILIARY_LAYER = 1
"""After which hidden states are returned."""
SILENCED = -50.0
"""The usual logit of speech tokens that are not in use: a row of zeros would give them 0, which is often drawn."""


class Model(nn.Module):
    """Upstream's T3 with compact tables of speech tokens, and a forward of its own."""

    rotation: Tensor
    phones: Tensor

    def __init__(self, live: np.ndarray, labels: int) -> None:
        """live: pairs of phones, first * phones + second, in the order of the tables."""
        super().__init__()
        self.t3 = upstream.t3(T3, None).train()
        width, self.live = T3.hidden, len(live)
        self.stop = self.bos = self.live
        self.embedding = nn.Parameter(torch.randn(self.live + 1, width) * 0.02)
        self.head = nn.Parameter(torch.randn(self.live + 1, width) * 0.02)
        self.embedding_phones = nn.Parameter(torch.randn(2, len(PHONES), width) * 0.05)
        self.head_phones = nn.Parameter(torch.randn(2, len(PHONES), width) * 0.02)
        self.auxiliary = nn.Linear(width, labels)
        halves = np.stack([live // len(PHONES), live % len(PHONES)])
        self.register_buffer("phones", torch.from_numpy(halves))
        for table in (self.t3.text_emb, self.t3.text_pos_emb.emb, self.t3.speech_pos_emb.emb):
            nn.init.normal_(table.weight, std=0.05)
        for layer in self.t3.tfmr.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, linear in part.named_children():
                    if isinstance(linear, nn.Linear):
                        scale = 0.35 if name in ("o_proj", "down_proj") else 1.0
                        nn.init.normal_(linear.weight, std=0.6 * scale * linear.in_features**-0.5)
        for unused in (self.t3.speech_emb, self.t3.speech_head, self.t3.text_head, self.t3.tfmr.embed_tokens):
            unused.weight.requires_grad_(False)
        self.register_buffer("rotation", rotations(T3, 2048), persistent=False)

    def hidden(self) -> list[nn.Parameter]:
        """The decoder's matrices."""
        return [weight for layer in self.t3.tfmr.layers for weight in layer.parameters() if weight.ndim == 2]

    def tables(self) -> tuple[Tensor, Tensor]:
        """Speech embedding and head, [live + 1, width]: a row of each pair and one of each of its phones."""
        first, second = self.phones

        def both(rows: Tensor, phones: Tensor) -> Tensor:
            return rows + F.pad(phones[0][first] + phones[1][second], (0, 0, 0, 1))

        return both(self.embedding, self.embedding_phones), both(self.head, self.head_phones)

    def conditioning(self, speaker: Tensor, prompt: Tensor, emotion: Tensor) -> Tensor:
        """[1, 256], embedded tokens [1, n, width], [1] to [1, prefix, width]."""
        encoder = self.t3.cond_enc
        embedded = prompt + self.t3.speech_pos_emb.emb.weight[: prompt.shape[1]]
        parts = [encoder.spkr_enc(speaker)[:, None], encoder.perceiver(embedded)]
        return torch.cat([*parts, encoder.emotion_adv_fc(emotion[:, None, None])], 1)

    def forward(self, prefix: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Prefix [1, prefix, width] and embedded sequences after it [rows, length, width] to last hidden states, the
        attention of the guided heads [rows, length, length], and hidden states in the middle."""
        start, length = prefix.shape[1], x.shape[1]
        mask = torch.full((start + length, start + length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        rotation = _expanded(self.rotation[: start + length]).to(x.dtype)
        seen, middle = [], x
        for index, layer in enumerate(self.t3.tfmr.layers):
            weights = _projections(layer.self_attn)
            own = _project(layer, weights, prefix, rotation[:, :start])
            q, k, v = _project(layer, weights, x, rotation[:, start:])
            k, v = (
                torch.cat([one.expand(len(x), -1, -1, -1), many], 2) for one, many in zip(own[1:], (k, v), strict=True)
            )
            if index + 1 < len(self.t3.tfmr.layers):
                prefix, _ = _mix(layer, prefix, *own, mask[:start, :start])
            x, attention = _mix(layer, x, q, k, v, mask[start:])
            if index in GUIDED_LAYERS:
                seen.append(attention.unflatten(0, (len(x), -1))[:, GUIDED_HEAD, :, start:])
            if index == AUXILIARY_LAYER:
                middle = x
        return _norm(self.t3.tfmr.norm, x), seen, middle

    def official(self, typical: Tensor) -> dict[str, Tensor]:
        """The state as upstream names it. typical: mean of the last hidden states, [width]."""
        embedding, head = (table.detach() for table in self.tables())
        state = {name: value.detach().clone() for name, value in self.t3.state_dict().items()}
        for name in ("speech_emb.weight", "text_head.weight", "tfmr.embed_tokens.weight", "speech_head.weight"):
            state[name].zero_()
        ids = torch.from_numpy(token_ids(*self.phones.numpy()))
        state["speech_emb.weight"][ids] = embedding[:-1]
        state["speech_emb.weight"][T3.start_speech] = embedding[-1]
        state["speech_head.weight"][:] = typical * (SILENCED / typical.square().sum())
        state["speech_head.weight"][ids] = head[:-1]
        state["speech_head.weight"][T3.stop_speech] = head[-1]
        return state

    @torch.no_grad()
    def load_official(self, state: dict[str, Tensor]) -> None:
        """The inverse of `official`; what the phones gave to the tables is in their rows then."""
        embedding, head = state["speech_emb.weight"], state["speech_head.weight"]
        self.t3.load_state_dict(state)
        ids = torch.from_numpy(token_ids(*self.phones.numpy()))
        self.embedding.copy_(torch.cat([embedding[ids], embedding[T3.start_speech, None]]))
        self.head.copy_(torch.cat([head[ids], head[T3.stop_speech, None]]))
        self.embedding_phones.zero_()
        self.head_phones.zero_()


def _norm(module: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], module.weight.to(x.dtype), module.variance_epsilon)


def _expanded(rotation: Tensor) -> Tensor:
    """[positions, 2, half] to cosines and signed sines, [2, positions, head_dim]."""
    cos, sin = rotation.unbind(1)
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])


def _projections(attention: Any) -> Tensor:
    """Weights of queries, keys, both with their halves swapped (so that a rotation is two products), and values."""
    q, k = (
        part.weight.unflatten(0, (T3.heads, 2, -1)) * scale
        for part, scale in ((attention.q_proj, T3.head_dim**-0.5), (attention.k_proj, 1.0))
    )
    return torch.cat(
        [q.flatten(0, 2), k.flatten(0, 2), q.flip(1).flatten(0, 2), k.flip(1).flatten(0, 2), attention.v_proj.weight]
    )


def _project(layer: Any, weights: Tensor, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled and rotated queries and keys, and values, [rows, heads, length, head_dim]."""
    y = F.linear(_norm(layer.input_layernorm, x), weights).unflatten(-1, (5, T3.heads, -1))
    straight, swapped, v = y[:, :, :2], y[:, :, 2:4], y[:, :, 4]
    cos, sin = rotation[:, :, None, None]
    q, k = torch.addcmul(straight * cos, swapped, sin).permute(2, 0, 3, 1, 4)
    return q, k, v.transpose(1, 2)


def _mix(layer: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A layer after its projections, and its attention, [rows * heads, queries, keys]. Flash attention's backward takes
    five times as long on a CPU."""
    scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    weights = scores.softmax(-1)
    mixed = torch.bmm(weights, v.flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2).flatten(2)
    x = x + layer.self_attn.o_proj(mixed)
    mlp = layer.mlp
    h = _norm(layer.post_attention_layernorm, x)
    return x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h)), weights
