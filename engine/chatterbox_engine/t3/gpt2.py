"""T3 with its GPT-2 backbone, of Turbo and Nano.

GPT-2 blocks (LayerNorm, GELU, biases everywhere) over [speaker | prompt tokens | text | BOS | speech], with one table
of learned positions over the whole sequence, no guidance and no emotion. Source of the architecture: chatterbox-tts
0.1.7 `models/t3/t3.py` (`inference_turbo`), `models/t3/llama_configs.py`, `tts_turbo.py`, and transformers' GPT-2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from chatterbox_engine.checkpoint.dims import GPT2Dims
from chatterbox_engine.kernels.device import upload
from chatterbox_engine.kernels.linear import Projection
from chatterbox_engine.kernels.shapes import Activation
from chatterbox_engine.t3.attention import Context, decode_attention, prompt_attention
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.transformer import Block, Queries, Transformer, rename
from chatterbox_engine.types import T3Conditionals


class GPT2Block(Block):
    """Query, key and value are one matrix."""

    def __init__(self, dims: GPT2Dims) -> None:
        super().__init__()
        inner = dims.heads * dims.head_dim
        self.attention_norm = nn.LayerNorm(dims.hidden, dims.layer_norm_eps)
        self.qkv, self.qkv_bias = _affine(3 * inner, dims.hidden)
        self.out, self.out_bias = _affine(dims.hidden, inner)
        self.mlp_norm = nn.LayerNorm(dims.hidden, dims.layer_norm_eps)
        self.up, self.up_bias = _affine(dims.intermediate, dims.hidden)
        self.down, self.down_bias = _affine(dims.hidden, dims.intermediate)

    def prepare(self) -> None:
        self.attention_in = _after_norm(self.attention_norm, self.qkv, self.qkv_bias)
        self.attention_out = Projection(self.out, self.out_bias)
        self.mlp_in = _after_norm(self.mlp_norm, self.up, self.up_bias, "gelu")
        self.mlp_out = Projection(self.down, self.down_bias)


def _affine(outputs: int, inputs: int) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.empty(outputs, inputs)), nn.Parameter(torch.empty(outputs))


class GPT2(Transformer):
    """The whole network: GPT-2 blocks with their embeddings and head."""

    dims: GPT2Dims
    matrices = ("qkv", "out", "up", "down")
    float32 = ("speaker.",)
    rotation = None

    def __init__(self, dims: GPT2Dims) -> None:
        super().__init__(dims)
        self.dims = dims
        self.text_embedding = nn.Parameter(torch.empty(dims.text_vocab, dims.hidden))
        self.speech_embedding = nn.Parameter(torch.empty(dims.speech_vocab, dims.hidden))
        self.position = nn.Parameter(torch.empty(dims.positions, dims.hidden))
        self.speaker = nn.Linear(dims.speaker_embed, dims.hidden)
        self.blocks = nn.ModuleList(GPT2Block(dims) for _ in range(dims.layers))
        self.norm = nn.LayerNorm(dims.hidden, dims.layer_norm_eps)
        self.head = nn.Parameter(torch.empty(dims.speech_vocab, dims.hidden))
        self.head_bias = nn.Parameter(torch.empty(dims.speech_vocab))

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names: dict[str, tuple[str, ...]] = {name: (official,) for name, official in _NAMES.items()}
        for index in range(self.dims.layers):
            for name, official in _BLOCK_NAMES.items():
                names[f"blocks.{index}.{name}"] = (f"tfmr.h.{index}.{official}",)
        ours = rename(state, names, _UNUSED)
        # transformers' `Conv1D` stores matrices as [inputs, outputs]
        return {name: tensor.T.contiguous() if name.endswith(_TRANSPOSED) else tensor for name, tensor in ours.items()}

    def prepare(self) -> None:
        super().prepare()
        self.logits = _after_norm(self.norm, self.head, self.head_bias)

    @torch.inference_mode()
    def conditioning(self, voice: T3Conditionals, exaggeration: float) -> Tensor:  # noqa: ARG002
        """Speaker and prompt tokens, without positions; exaggeration has no effect."""
        speaker = self.speaker(upload(voice.speaker, self.device)[None])  # [1, hidden]
        prompt = self.speech_embedding[upload(voice.prompt_tokens, self.device)]
        return torch.cat([speaker.to(prompt.dtype), prompt]).to(self.stream_dtype)

    @torch.inference_mode()
    def prompt(self, text: Tensor) -> Tensor:
        """Without positions, which depend on the prefix."""
        bos = self.speech_embedding[self.dims.start_speech][None]
        return torch.cat([self.text_embedding[text], bos])[None].to(self.stream_dtype)

    def prefill(self, x: Tensor, context: Context, cache: KVCache) -> Tensor:
        x = x + self.position[context.position]
        for index, block in enumerate(self.layers):
            q, k, v = self.qkv(block, x).unbind(2)  # [rows, length, heads, head_dim]
            mixed = prompt_attention(q, k, v, cache.data[index], context)
            x = block.finish(x, mixed.flatten(2))
        return self.logits(x[torch.arange(len(x), device=x.device), context.last])

    def decode(
        self,
        token: Tensor,
        speech_position: Tensor,  # noqa: ARG002
        start: Tensor,
        position: Tensor,
        cache: KVCache,
        queries: Queries | None = None,
    ) -> Tensor:
        x = self.speech_embedding[token].to(self.stream_dtype) + self.position[position]  # [rows, hidden]
        for index, block in enumerate(self.layers):
            qkv = self.qkv(block, x)
            if queries is not None:
                queries.keep(index, qkv)
            mixed = decode_attention(qkv, None, cache.data, cache.arrived, index, start, position)
            x = block.finish(x, mixed.flatten(1))
        return self.logits(x)


def _after_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor, activation: Activation = "none") -> Projection:
    return Projection(weight, bias, gain=norm.weight, shift=norm.bias, eps=norm.eps, activation=activation)


_NAMES = {
    "text_embedding": "text_emb.weight",
    "speech_embedding": "speech_emb.weight",
    "position": "tfmr.wpe.weight",
    "speaker.weight": "cond_enc.spkr_enc.weight",
    "speaker.bias": "cond_enc.spkr_enc.bias",
    "norm.weight": "tfmr.ln_f.weight",
    "norm.bias": "tfmr.ln_f.bias",
    "head": "speech_head.weight",
    "head_bias": "speech_head.bias",
}

_BLOCK_NAMES = {
    "attention_norm.weight": "ln_1.weight",
    "attention_norm.bias": "ln_1.bias",
    "qkv": "attn.c_attn.weight",
    "qkv_bias": "attn.c_attn.bias",
    "out": "attn.c_proj.weight",
    "out_bias": "attn.c_proj.bias",
    "mlp_norm.weight": "ln_2.weight",
    "mlp_norm.bias": "ln_2.bias",
    "up": "mlp.c_fc.weight",
    "up_bias": "mlp.c_fc.bias",
    "down": "mlp.c_proj.weight",
    "down_bias": "mlp.c_proj.bias",
}

_TRANSPOSED = (".qkv", ".out", ".up", ".down")

# Part of the official file, unused at inference: the text head and the backbone's own token table.
_UNUSED = frozenset({"text_head.weight", "tfmr.wte.weight"})
