"""Where T3 looks in the text while it speaks: the attention of a few named heads, read beside a decode step.

Some heads of T3 attend to the text that is being spoken (upstream `alignment_stream_analyzer.py`, chatterbox-tts 0.1.7,
names three of Llama's). Their queries are kept by the step; after it the attention over the row's keys is computed once
more, for these heads alone, averaged, and reduced on the device to the numbers of `Reading`. Nothing is computed in
steps of which no utterance wants it.

On CUDA two kernels do it (`alignment_cuda`), on a CPU one of numba.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.slots import Batch, Slots
from chatterbox_engine.t3.transformer import Queries, Transformer
from chatterbox_engine.types import Head, Reading

READINGS = len(Reading._fields)
NO_STOP = -(2.0**15)
"""Logit of a stop token that must not be drawn, as upstream's analyser sets it; all types hold it."""

SHORT_TEXT = 5
"""Tokens, start and stop included, of a text that is too short for the stop token to be held."""


class Alignment:
    """Reads the named heads for the utterances of the decode batch. Static memory, which captured graphs use."""

    def __init__(self, model: Transformer, cache: KVCache, slots: Slots, heads: Sequence[Head], rows: int) -> None:
        """heads: at least one, all of the model's; rows: of a decode step at most."""
        device, dims = model.device, model.dims
        self._cache, self._slots = cache, slots
        self._rotation = model.rotation
        self._longest, self._stop = dims.longest, dims.stop_speech
        self._heads = tuple(heads)
        self._picked = torch.tensor(heads, device=device)  # [named, 2]
        self._queries = torch.zeros(rows, len(heads), dims.head_dim, dtype=model.dtype, device=device)
        count = slots.dummy + 1
        self._text = torch.zeros(2, count, dtype=torch.int64, device=device)
        """[2, slots]: the first position of each slot's text, and the one after its last."""
        self._holding = torch.zeros(count, dtype=torch.int64, device=device)
        """[slots]: 1 where the stop token must not be drawn before the text's end."""
        self._readings = torch.zeros(count, READINGS, dtype=torch.float32, device=device)
        self._holders: set[int] = set()
        """The slots of which `_holding` is 1."""
        self._scores: Tensor | None = None
        if device.type == "cuda":
            self._scores = torch.zeros(count, len(heads), dims.longest, dtype=torch.float32, device=device)

    def fill(self, slot: int, text: tuple[int, int], *, holding: bool) -> None:
        """Sets a slot up for a new utterance. text: its first position and the one after its last; holding: the stop
        token must not be drawn before the text's end."""
        for part, position in zip(self._text, text, strict=True):
            part[slot].fill_(position)
        self._holding[slot].fill_(int(holding))
        if holding:
            self._holders.add(slot)
        else:
            self._holders.discard(slot)

    def queries(self, rows: int) -> Queries:
        """Where a decode step of so many rows keeps the heads' queries."""
        return Queries(self._heads, self._queries[:rows])

    def read(self, logits: Tensor, batch: Batch, count: int, start: Tensor) -> None:
        """Reads the step that gave `logits`, before a token is drawn, for the first `count` utterances of the batch.

        Takes the stop token's logit from those that hold it and have not reached the last three places of a text of
        more than five. logits: [rows, vocab]; start: [rows] int64, the rows' extents.
        """
        slot, conditional, unconditional = batch.rows(count).unbind()
        places, steps = (slot, conditional, start), (self._slots.prompt, self._slots.step)
        heads = self._cache.data, self._picked, self._queries, self._rotation
        if self._scores is not None:
            from chatterbox_engine.t3.alignment_cuda import reduce, score

            score(*heads, places, *steps, self._scores)
            reduce(
                self._scores,
                (slot, conditional, unconditional),
                (*steps, self._text, self._holding),
                logits,
                self._readings,
                stop=self._stop,
                no_stop=NO_STOP,
                short_text=SHORT_TEXT,
            )
            return
        from chatterbox_engine.kernels.cpu.alignment import alignment

        alignment(*heads, places, *steps, self._text, self._readings[:count], self._longest)
        if not self._holders:
            return
        size = (self._text[1] - self._text[0])[slot]
        held = (self._holding[slot] == 1) & (self._readings[:count, _STRICT] < size - 3) & (size > SHORT_TEXT)
        for row in (conditional, unconditional):
            logits[row[held], self._stop] = NO_STOP

    def readings(self, count: int) -> Tensor:
        """Of the first `count` utterances of the last batch: a view of [count, READINGS]."""
        return self._readings[:count]


_STRICT = Reading._fields.index("strict")


def hold_stop(logits: Tensor, rows: Sequence[int], stop: int) -> None:
    """Takes the stop token's logit from some rows of [rows, vocab]: in a prefill nothing has been read yet."""
    for row in rows:
        logits[row, stop].fill_(NO_STOP)
