"""Prompts on the device: their sizes, their inputs and their places in the KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox_engine.kernels.device import upload
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.attention import Context
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.transformer import Transformer
from chatterbox_engine.types import SamplingParams

PREFILL_LENGTHS = (32, 64, 96, 128, 160, 224, 288, 352, 416, 480)
"""Lengths of a prompt (text and BOS) that graphs are captured for: in steps of 32 up to the length of most segments of
300 characters, then in larger ones for the languages that have more tokens."""
PREFILL_ROWS = (2, 8)
"""Rows of prompts that graphs are captured for."""


@dataclass(frozen=True)
class Prompt:
    """The inputs for starting one utterance."""

    slot: int
    rows: tuple[Extent, ...]  # conditional, then unconditional unless cfg_weight is 0
    text: Tensor  # [n] int64, from T3Dims.frame
    sampling: SamplingParams
    uniforms: Tensor  # [max_tokens + 1] float32 of [0, 1), one per step
    aligned: bool = False
    """Its steps are read (`alignment`)."""
    holding: bool = False
    """The stop token is not drawn before the text's end; only of those whose steps are read."""
    seed: int = 0
    """Of the draws that are made on the device."""

    @property
    def max_tokens(self) -> int:
        """Speech tokens after which the utterance ends at the latest."""
        return len(self.uniforms) - 1


@dataclass(frozen=True)
class Placed:
    """A prefill's inputs: static memory where a graph may read them."""

    x: Tensor  # [rows, length, hidden]
    places: Tensor  # [3, rows] int64: the start of each row's extent, the positions of its prefix, its last input
    reach: int
    """Positions of a row at most."""

    @property
    def rows(self) -> int:
        return self.x.shape[0]

    @property
    def length(self) -> int:
        return self.x.shape[1]

    def context(self, cache: KVCache) -> Context:
        """What the inputs attend to."""
        return Context.of(cache, *self.places.unbind(), length=self.length, reach=self.reach)


class Prompts:
    """Puts prompts after their voices' prefixes. One static set of inputs; without graphs a new one for each."""

    def __init__(self, model: Transformer, cache: KVCache, graphs: Graphs) -> None:
        self._model, self._cache, self._graphs = model, cache, graphs
        self._static: tuple[Tensor, Tensor] | None = None
        if graphs.enabled:
            self._static = self._new(PREFILL_ROWS[-1], PREFILL_LENGTHS[-1])

    def group(self, rows: int) -> int:
        """Utterances that are started together, of so many rows each. One on a CPU, where its bits must not depend on
        the others."""
        return PREFILL_ROWS[-1] // rows if self._graphs.enabled else 1

    def captured(self) -> list[tuple[int, int]]:
        """The rows and lengths that graphs are captured for, largest first."""
        return [(rows, length) for rows in PREFILL_ROWS[::-1] for length in PREFILL_LENGTHS[::-1]]

    def empty(self, rows: int, length: int) -> Placed:
        """The inputs of a captured prefill, which may follow the longest prefix."""
        return Placed(*self._tensors(rows, length), self._model.dims.prefix + length)

    def place(self, starting: Sequence[tuple[Prompt, Tensor]]) -> tuple[Placed, list[int]]:
        """Fills the heads of the extents and the inputs of a prefill; returns it with the positions of each prompt,
        its prefix included."""
        placed, lengths = self._sized(starting), []
        device = self._model.device
        places: list[tuple[int, int, int]] = []
        for prompt, prefix in starting:
            embedded = self._model.prompt(upload(prompt.text, device))
            past, own = prefix.shape[2], embedded.shape[1]
            lengths.append(past + own)
            for row, (extent, embedded_row) in enumerate(zip(prompt.rows, embedded, strict=False)):
                self._cache.fill(extent, self._model.prefix_of_row(prefix, row))
                placed.x[len(places), :own] = embedded_row
                places.append((extent.start, past, own - 1))
        places += [(self._cache.scratch, 0, 0)] * (placed.rows - len(places))
        placed.places.copy_(upload(torch.tensor(places), device).T)
        return placed, lengths

    def _sized(self, starting: Sequence[tuple[Prompt, Tensor]]) -> Placed:
        """The inputs for some prompts: those of a captured prefill if there is one that is large enough."""
        rows = sum(len(prompt.rows) for prompt, _ in starting)
        length = max(len(prompt.text) for prompt, _ in starting) + self._model.dims.bos
        if self._graphs.enabled and length <= PREFILL_LENGTHS[-1]:
            rows = next(size for size in PREFILL_ROWS if size >= rows)
            return self.empty(rows, next(size for size in PREFILL_LENGTHS if size >= length))
        reach = max(prefix.shape[2] for _, prefix in starting) + length
        return Placed(*self._tensors(rows, length), reach)

    def _tensors(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        if self._static is None or length > PREFILL_LENGTHS[-1]:
            return self._new(rows, length)
        x, places = self._static
        return x[:rows, :length], places[:, :rows]

    def _new(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        device, dims = self._model.device, self._model.dims
        x = torch.zeros(rows, length, dims.hidden, dtype=self._model.stream_dtype, device=device)
        places = torch.zeros(3, rows, dtype=torch.int64, device=device)
        places[0] = self._cache.scratch
        return x, places
