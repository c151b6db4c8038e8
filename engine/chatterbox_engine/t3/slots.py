"""What T3's steps keep on the device: the state of each slot, and the batches of utterances that share a launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chatterbox_engine.kernels.device import upload
from chatterbox_engine.types import SamplingParams


class Slots:
    """One row per slot, and a dummy row at the end for padding. Sampling parameters have the names of
    `SamplingParams`."""

    def __init__(self, count: int, vocab: int, max_tokens: int, device: torch.device) -> None:
        self.device = device
        self.dummy = count
        rows = count + 1

        def integers() -> Tensor:
            return torch.zeros(rows, dtype=torch.int64, device=device)

        def floats() -> Tensor:
            return torch.ones(rows, dtype=torch.float32, device=device)

        self.token, self.step, self.prompt, self.alive = integers(), integers(), integers(), integers()
        self.prompt[self.dummy] = 1  # the dummy row stays at position 0 of the scratch extent
        self.cfg_weight, self.temperature, self.repetition_penalty = floats(), floats(), floats()
        self.min_p, self.top_p, self.top_k = floats(), floats(), integers()
        self.seen = torch.zeros(rows, vocab, dtype=torch.bool, device=device)
        # one more than can be drawn: the step that runs before a stop is noticed draws too
        self.uniforms = torch.zeros(rows, max_tokens + 2, dtype=torch.float32, device=device)

    def fill(self, slot: int, sampling: SamplingParams, uniforms: Tensor, *, length: int, bos: int) -> None:
        """Sets a slot up for a new utterance. uniforms: [n] float32 of [0, 1), one per step; length: positions of its
        prompt, prefix included."""
        # fill_ passes the number to the kernel; an assignment would copy it from the host and wait for the device
        self.step[slot].fill_(0)
        self.prompt[slot].fill_(length)
        self.alive[slot].fill_(1)
        for name in ("cfg_weight", "temperature", "repetition_penalty", "min_p", "top_p", "top_k"):
            getattr(self, name)[slot].fill_(getattr(sampling, name))
        self.seen[slot].fill_(False)
        self.seen[slot, bos].fill_(True)
        self.uniforms[slot, : len(uniforms)] = upload(uniforms, self.device)


class Batch:
    """The utterances that a launch draws tokens for: static memory of the device, which captured graphs read.

    Padding utterances have the dummy slot.
    """

    def __init__(self, name: str, size: int, slots: Slots) -> None:
        """size: utterances at most."""
        self.name = name
        self.size = size
        self._dummy = slots.dummy
        self._rows = torch.zeros(3, size, dtype=torch.int64, device=slots.device)
        self._tokens = torch.zeros(size, dtype=torch.int64, device=slots.device)

    def fill(self, utterances: Sequence[tuple[int, int, int]], count: int) -> None:
        """Uploads each utterance's slot, conditional and unconditional row of the logits, padded to `count`."""
        padded = [*utterances, *[(self._dummy, 0, 0)] * (count - len(utterances))]
        self._rows[:, :count] = upload(torch.tensor(padded), self._rows.device).T

    def rows(self, count: int) -> Tensor:
        """Slot, conditional and unconditional row of the first `count` utterances: a view of [3, count] int64."""
        return self._rows[:, :count]

    def tokens(self, count: int) -> Tensor:
        """Where the tokens of the first `count` utterances are written to: a view of [count] int64."""
        return self._tokens[:count]
