"""The sampler of a step: one interface, a backend for each kind of device."""

from __future__ import annotations

from torch import Tensor

from chatterbox_engine.checkpoint.families import Family
from chatterbox_engine.t3.slots import Batch, Slots


class Sampler:
    """Draws the next token of each utterance of a batch and updates its slot.

    On a GPU all of it is one kernel (`sampling_cuda`), elsewhere torch's operators (`sampling`).
    """

    def __init__(self, slots: Slots, family: Family, bos: int) -> None:
        """bos: the token that starts the speech."""
        self._slots = slots
        self._processors = family.processors
        self._bos_once = bos if family.bos_once else None
        if slots.device.type == "cuda":
            from chatterbox_engine.t3.sampling_cuda import sample
        else:
            from chatterbox_engine.t3.sampling import sample
        self._sample = sample

    def __call__(self, logits: Tensor, batch: Batch, count: int, *, use_top: bool) -> None:
        """Draws for the first `count` utterances of the batch, into `batch.tokens`.

        logits: [rows, vocab]. `use_top` False skips top-k and top-p, right only when no utterance has one.
        """
        self._sample(
            logits,
            batch.rows(count),
            self._slots,
            batch.tokens(count),
            self._processors,
            use_top=use_top,
            bos_once=self._bos_once,
        )
