"""T3 with its Llama backbone, of the English and the multilingual models.

Llama blocks (RMSNorm, RoPE with llama3 scaling, SwiGLU) over [speaker | perceiver | emotion | text | BOS BOS | speech].
Source of the architecture: chatterbox-tts 0.1.7 `models/t3/t3.py`, `modules/cond_enc.py`, `modules/perceiver.py`, and
transformers' Llama.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_engine.checkpoint.dims import LlamaDims
from chatterbox_engine.kernels.device import upload
from chatterbox_engine.kernels.linear import Projection
from chatterbox_engine.t3.attention import Context, decode_attention, prompt_attention, rotate
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.transformer import Block, Queries, Transformer, rename
from chatterbox_engine.types import T3Conditionals


class LlamaBlock(Block):
    """Query, key and value are one matrix, gate and up another."""

    def __init__(self, dims: LlamaDims) -> None:
        super().__init__()
        inner = dims.heads * dims.head_dim
        self.attention_norm = nn.Parameter(torch.empty(dims.hidden))
        self.qkv = nn.Parameter(torch.empty(3 * inner, dims.hidden))
        self.out = nn.Parameter(torch.empty(dims.hidden, inner))
        self.mlp_norm = nn.Parameter(torch.empty(dims.hidden))
        self.gate_up = nn.Parameter(torch.empty(2 * dims.intermediate, dims.hidden))
        self.down = nn.Parameter(torch.empty(dims.hidden, dims.intermediate))
        self._eps = dims.rms_norm_eps

    def prepare(self) -> None:
        self.attention_in = Projection(self.qkv, gain=self.attention_norm, eps=self._eps)
        self.attention_out = Projection(self.out)
        self.mlp_in = Projection(self.gate_up, gain=self.mlp_norm, eps=self._eps, activation="swiglu")
        self.mlp_out = Projection(self.down)


class Perceiver(nn.Module):
    """Resamples the embedded prompt to a fixed number of positions (Jaegle et al. 2021, arXiv 2103.03206).

    The same attention block is applied twice: queries against the prompt, then against themselves.
    """

    def __init__(self, dims: LlamaDims) -> None:
        super().__init__()
        self.heads = dims.perceiver_heads
        self.queries = nn.Parameter(torch.empty(1, dims.perceiver_queries, dims.hidden))
        self.norm = nn.LayerNorm(dims.hidden)
        self.query = nn.Linear(dims.hidden, dims.hidden)
        self.key = nn.Linear(dims.hidden, dims.hidden)
        self.value = nn.Linear(dims.hidden, dims.hidden)
        self.out = nn.Linear(dims.hidden, dims.hidden)

    def forward(self, prompt: Tensor) -> Tensor:
        """[1, n, hidden] to [1, queries, hidden]."""
        mixed = self._attend(self.queries, prompt)
        return self._attend(mixed, mixed)

    def _attend(self, x: Tensor, context: Tensor) -> Tensor:
        context = self.norm(context)
        query = self._heads(self.query(self.norm(x)))
        mixed = F.scaled_dot_product_attention(query, self._heads(self.key(context)), self._heads(self.value(context)))
        return x + self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class T3(Transformer):
    """The whole network: Llama blocks with their embeddings, conditioning and head."""

    dims: LlamaDims
    matrices = ("qkv", "out", "gate_up", "down")
    float32 = ("speaker.", "emotion.", "perceiver.")
    rotation: Tensor

    def __init__(self, dims: LlamaDims) -> None:
        super().__init__(dims)
        self.dims = dims
        self.text_embedding = nn.Parameter(torch.empty(dims.text_vocab, dims.hidden))
        self.text_position = nn.Parameter(torch.empty(dims.text_positions, dims.hidden))
        self.speech_embedding = nn.Parameter(torch.empty(dims.speech_embeddings, dims.hidden))
        self.speech_position = nn.Parameter(torch.empty(dims.speech_positions, dims.hidden))
        self.speaker = nn.Linear(dims.speaker_embed, dims.hidden)
        self.emotion = nn.Linear(1, dims.hidden, bias=False)
        self.perceiver = Perceiver(dims)
        self.blocks = nn.ModuleList(LlamaBlock(dims) for _ in range(dims.layers))
        self.norm = nn.Parameter(torch.empty(dims.hidden))
        self.head = nn.Parameter(torch.empty(dims.speech_vocab, dims.hidden))

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names: dict[str, tuple[str, ...]] = {name: (official,) for official, name in _NAMES.items()}
        for index in range(self.dims.layers):
            for name, officials in _BLOCK_NAMES.items():
                names[f"blocks.{index}.{name}"] = tuple(f"tfmr.layers.{index}.{official}" for official in officials)
        return rename(state, names, _UNUSED)

    def prepare(self) -> None:
        super().prepare()
        self.logits = Projection(self.head, gain=self.norm, eps=self.dims.rms_norm_eps)
        table = rotations(self.dims, self.dims.longest).to(self.device, self.dtype)
        self.register_buffer("rotation", table, persistent=False)

    @torch.inference_mode()
    def conditioning(self, voice: T3Conditionals, exaggeration: float) -> Tensor:
        prompt = upload(voice.prompt_tokens, self.device)
        embedded = self.speech_embedding[prompt].to(self.stream_dtype) + self.speech_position[: len(prompt)]
        speaker = self.speaker(upload(voice.speaker, self.device)[None])  # [1, hidden]
        emotion = self.emotion(torch.full((1, 1), float(exaggeration), device=self.device))
        return torch.cat([speaker, self.perceiver(embedded[None].float())[0], emotion]).to(self.stream_dtype)

    @torch.inference_mode()
    def prompt(self, text: Tensor) -> Tensor:
        """The unconditional row has the positions without the text's embedding. BOS stands twice, each time at speech
        position 0."""
        positions = self.text_position[: len(text)]
        bos = self.speech_embedding[self.dims.start_speech].to(self.stream_dtype) + self.speech_position[0]
        bos = bos.expand(2, -1)
        embedded = self.text_embedding[text].to(self.stream_dtype) + positions
        return torch.stack([torch.cat([embedded, bos]), torch.cat([positions.to(embedded.dtype), bos])])

    def prefill(self, x: Tensor, context: Context, cache: KVCache) -> Tensor:
        x = self.through_prompt(x, context, cache)
        return self.logits(x[torch.arange(len(x), device=x.device), context.last])

    def through_prompt(self, x: Tensor, context: Context, cache: KVCache) -> Tensor:
        """All blocks: what `prefill` computes the logits of."""
        return self.through(x, context.position, cache, partial(prompt_attention, context=context))

    def through(self, x: Tensor, position: Tensor, cache: KVCache, attend: Callable[..., Tensor]) -> Tensor:
        """Takes inputs [rows, length, hidden] at positions [rows, length] through all blocks; `attend` gets query, key,
        value and the layer's pool."""
        rotation = self.rotation[position][:, :, None, None]
        for index, block in enumerate(self.layers):
            qkv = self.qkv(block, x)  # [rows, length, 3, heads, head_dim]
            # query and key together, which is half the kernels
            q, k, v = *rotate(qkv[:, :, :2], rotation).unbind(2), qkv[:, :, 2]
            x = block.finish(x, attend(q, k, v, cache.data[index]).flatten(2))
        return x

    def decode(
        self,
        token: Tensor,
        speech_position: Tensor,
        start: Tensor,
        position: Tensor,
        cache: KVCache,
        queries: Queries | None = None,
    ) -> Tensor:
        x = self.speech_embedding[token].to(self.stream_dtype) + self.speech_position[speech_position]  # [rows, hidden]
        rotation = self.rotation[position]
        for index, block in enumerate(self.layers):
            qkv = self.qkv(block, x)
            if queries is not None:
                queries.keep(index, qkv)
            mixed = decode_attention(qkv, rotation, cache.data, cache.arrived, index, start, position)
            x = block.finish(x, mixed.flatten(1))
        return self.logits(x)


def rotations(dims: LlamaDims, positions: int) -> Tensor:
    """Cosines and sines of RoPE with llama3 scaling (transformers `modeling_rope_utils`): [positions, 2, head_dim / 2]
    float32."""
    frequency = 1.0 / dims.rope_theta ** (torch.arange(0, dims.head_dim, 2, dtype=torch.int64).float() / dims.head_dim)
    wavelength = 2 * math.pi / frequency
    low, high = dims.rope_low_freq_factor, dims.rope_high_freq_factor
    smooth = ((dims.rope_original_positions / wavelength - low) / (high - low)).clamp(0, 1)
    scaled = (1 - smooth) * frequency / dims.rope_factor + smooth * frequency
    angles = torch.arange(positions)[:, None] * scaled
    return torch.stack([angles.cos(), angles.sin()], dim=1)


_NAMES = {
    "text_emb.weight": "text_embedding",
    "text_pos_emb.emb.weight": "text_position",
    "speech_emb.weight": "speech_embedding",
    "speech_pos_emb.emb.weight": "speech_position",
    "cond_enc.spkr_enc.weight": "speaker.weight",
    "cond_enc.spkr_enc.bias": "speaker.bias",
    "cond_enc.emotion_adv_fc.weight": "emotion.weight",
    "cond_enc.perceiver.pre_attention_query": "perceiver.queries",
    "cond_enc.perceiver.attn.norm.weight": "perceiver.norm.weight",
    "cond_enc.perceiver.attn.norm.bias": "perceiver.norm.bias",
    "cond_enc.perceiver.attn.to_q.weight": "perceiver.query.weight",
    "cond_enc.perceiver.attn.to_q.bias": "perceiver.query.bias",
    "cond_enc.perceiver.attn.to_k.weight": "perceiver.key.weight",
    "cond_enc.perceiver.attn.to_k.bias": "perceiver.key.bias",
    "cond_enc.perceiver.attn.to_v.weight": "perceiver.value.weight",
    "cond_enc.perceiver.attn.to_v.bias": "perceiver.value.bias",
    "cond_enc.perceiver.attn.proj_out.weight": "perceiver.out.weight",
    "cond_enc.perceiver.attn.proj_out.bias": "perceiver.out.bias",
    "tfmr.norm.weight": "norm",
    "speech_head.weight": "head",
}

# Part of the official file, of no use at inference: the text head and the backbone's own token table.
_UNUSED = frozenset({"text_head.weight", "tfmr.embed_tokens.weight"})

_BLOCK_NAMES = {
    "attention_norm": ("input_layernorm.weight",),
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "out": ("self_attn.o_proj.weight",),
    "mlp_norm": ("post_attention_layernorm.weight",),
    "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "down": ("mlp.down_proj.weight",),
}
