"""T3 of Chatterbox Flash: the same Llama, which predicts a block of speech tokens at a time.

A block is refined in passes. Each pass reads all of its tokens, those that are not known yet as `FlashDims.mask`, and
every position attends to the whole block and to all that comes before it. Logits of a token come from the position
before it, as in upstream's training. Source: chatterbox-flash 0.1.0 `model.py`, `engines/torch_sdpa.py`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from chatterbox_engine.checkpoint.dims import FlashDims
from chatterbox_engine.kernels.device import upload
from chatterbox_engine.kernels.linear import packed
from chatterbox_engine.t3.attention import Context
from chatterbox_engine.t3.block_attention import Blocks, block_attention
from chatterbox_engine.t3.extents import round_up
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.llama import T3


class FlashT3(T3):
    """English T3 with one more input token. The positions of speech count from the start of their block."""

    dims: FlashDims

    def __init__(self, dims: FlashDims) -> None:
        super().__init__(dims)

    def pack(self) -> None:
        """On a CPU the matrices get oneDNN's order, which suits the many rows of a pass, unless they are float16."""
        for block in self.layers:
            for name in self.matrices:
                setattr(block, name, nn.Parameter(packed(getattr(block, name).data), requires_grad=False))
        self.head = nn.Parameter(packed(self.head.data), requires_grad=False)
        self.prepare()

    @torch.inference_mode()
    def prompt(self, text: Tensor) -> Tensor:
        """All that the unconditional row is given is zero, up to BOS."""
        given = self.text_embedding[text].to(self.stream_dtype) + self.text_position[: len(text)]
        bos = self._embedded(upload([self.dims.start_speech], self.device))
        return torch.stack([torch.cat([given, bos]), torch.cat([torch.zeros_like(given), bos])])

    def prefix_of_row(self, prefix: Tensor, row: int) -> Tensor:
        """The unconditional row's is zero: a network without biases makes keys and values of zero from zeros."""
        return torch.zeros_like(prefix) if row else prefix

    def begin(self, x: Tensor, context: Context, cache: KVCache) -> Tensor:
        """`prefill`, as far as the last block: the hidden state of each row's last input, [rows, hidden]. The logits of
        the first speech token are made from it."""
        return self.through_prompt(x, context, cache)[torch.arange(len(x), device=x.device), context.last]

    def denoise(self, tokens: Tensor, blocks: Blocks, cache: KVCache) -> Tensor:
        """One pass: stores the keys and values of some blocks, over those of the pass before. tokens: [rows, block].
        Returns the hidden states, [rows, block, hidden]."""
        return self.through(self._embedded(tokens), blocks.position, cache, partial(block_attention, blocks=blocks))

    def _embedded(self, tokens: Tensor) -> Tensor:
        """[..., n] to [..., n, hidden]."""
        return self.speech_embedding[tokens].to(self.stream_dtype) + self.speech_position[: tokens.shape[-1]]

    @torch.inference_mode()
    def prior(self) -> Tensor:
        """How probable each token is in the first block of nothing: [speech_vocab] float32."""
        block = self.dims.block
        tokens = upload([self.dims.start_speech, *[self.dims.mask] * block], self.device)
        x = self._embedded(tokens)
        cache = KVCache(self.dims, round_up(len(tokens)), device=self.device, dtype=self.dtype)
        start = torch.zeros(1, dtype=torch.int64, device=self.device)
        context = Context.of(cache, start, start, start + block, length=len(x), reach=len(x))
        hidden = self.through_prompt(x[None], context, cache)[:, :block]
        return self.logits(hidden)[0].float().softmax(dim=-1).mean(dim=0)
