"""Prefill and denoising passes of Flash's T3 for the utterances that the scheduler selects.

The counterpart of `runner`. A step is one pass over the current block of every utterance, whichever block and pass each
is at. The pass that begins a block also reads the finished one before it, whose keys and values so replace those of its
last pass: upstream runs a pass for that alone.

Which pass is a block's last depends on its tokens, so the next pass is made up once they are on the host. It is
uploaded as a table, and nothing of it stays on the device but keys, values and one hidden state for each row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from chatterbox_engine.kernels.device import Download, upload
from chatterbox_engine.kernels.graphs import Graphs, bucket, buckets
from chatterbox_engine.t3.block_attention import Blocks
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.flash import FlashT3
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.prompts import PREFILL_ROWS, Placed, Prompt, Prompts
from chatterbox_engine.t3.schedule import MAX_STEPS, counts, quantile
from chatterbox_engine.t3.unmasking import FLOATS, INTEGERS, Choice, unmask
from chatterbox_engine.types import Reading

ROWS = 2
"""Of an utterance: conditional and unconditional."""
_PLACES = 5  # integers of a row before its tokens


@dataclass(eq=False)
class Speaking:
    """An utterance between its prefill and its end."""

    prompt: Prompt
    past: int
    """Positions before the current block."""
    tokens: list[int]
    """Of the current block."""
    finished: list[int] = field(default_factory=list)
    """The block before, while its final keys and values are not stored."""
    left: int = 0
    """Speech tokens of the blocks after the current one."""
    block: int = 0
    step: int = 0
    ended: bool = False


class Passed:
    """The tokens of one pass on their way to the host."""

    def __init__(self, blocks: Sequence[int | None], tokens: Tensor, stop: int, mask: int) -> None:
        """blocks: the number of tokens of each utterance's block, None for those that the pass did not include;
        tokens: [utterances that it included, block]."""
        self._blocks = blocks
        self._tokens = Download(tokens)
        self._stop, self._mask = stop, mask

    def blocks(self) -> list[list[int]]:
        """The tokens of each utterance that the pass included; waits for the device."""
        lengths = [length for length in self._blocks if length is not None]
        return [block[:length] for block, length in zip(self._tokens.read(), lengths, strict=True)]

    def read(self) -> list[list[int]]:
        """The tokens of each utterance whose block is final now, in the order of the launch's utterances; waits for
        the device. Tokens that were not known when the stop token was are the mask."""
        blocks = iter(self.blocks())
        return [[] if length is None else self._final(next(blocks)) for length in self._blocks]

    def readings(self) -> list[Reading]:
        """None: its heads do not follow the text step by step."""
        return []

    def _final(self, block: list[int]) -> list[int]:
        return block if self.over(block) else []

    def over(self, block: list[int]) -> bool:
        """Whether a block needs no further pass."""
        return self._mask not in block or self._stop in block


class BlockRunner:
    """Launches the work of Flash's T3. Owned by the engine's thread; on CUDA it uses the current stream of that
    thread."""

    def __init__(self, model: FlashT3, cache: KVCache, max_slots: int, *, graphs: Graphs) -> None:
        model.pack()
        self.model, self.cache, self.graphs = model, cache, graphs
        self.max_slots = max_slots
        self.max_rows = 2 * ROWS * max_slots  # a finished block and the next one of each row
        dims, device = model.dims, model.device
        self._dummy = ROWS * max_slots
        rows = max(self.max_rows, PREFILL_ROWS[-1])
        # of each slot's rows, and a dummy: the hidden state before the current block
        self._before = torch.zeros(self._dummy + 1, dims.hidden, dtype=model.stream_dtype, device=device)
        self._logits = torch.zeros(rows, dims.block, dims.speech_vocab, dtype=model.dtype, device=device)
        self._rows = torch.zeros(rows, _PLACES + dims.block, dtype=torch.int64, device=device)
        self._integers = torch.zeros(max_slots, len(INTEGERS) + dims.block, dtype=torch.int64, device=device)
        self._floats = torch.zeros(max_slots, len(FLOATS), dtype=torch.float32, device=device)
        self._chosen = torch.zeros(max_slots, dims.block, dtype=torch.int64, device=device)
        self._to = torch.full((rows,), self._dummy, device=device)
        self._prior = model.prior().log()
        self._prompts = Prompts(model, cache, graphs)
        self._speaking: dict[int, Speaking] = {}  # by slot
        self._launched: tuple[list[Speaking], Passed] | None = None

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt], prefixes: Sequence[Tensor]) -> Passed:
        """Runs prompts after their voices' prefixes (`Transformer.prefix`). Their first pass is the next step's."""
        starting = list(zip(prompts, prefixes, strict=True))
        size = self._prompts.group(ROWS)
        for first in range(0, len(starting), size):
            group = starting[first : first + size]
            placed, lengths = self._prompts.place(group)
            for (prompt, _), past in zip(group, lengths, strict=True):
                self._speaking[prompt.slot] = self._begun(prompt, past)
            states = [self._state(prompt.slot, row) for prompt, _ in group for row in range(len(prompt.rows))]
            states += [self._dummy] * (placed.rows - len(states))
            self._to[: placed.rows] = upload(torch.tensor(states), self.model.device)
            self.graphs.run(("prefill", placed.rows, placed.length), partial(self._run_prefill, placed))
        return Passed([None] * len(prompts), self._chosen[:0], 0, 0)

    @torch.inference_mode()
    def decode(self, utterances: Sequence[Prompt]) -> Passed:
        """One pass over the block of each of these running utterances."""
        self._settle()
        speaking = [self._speaking[utterance.slot] for utterance in utterances]
        active = [one for one in speaking if not one.ended]
        if active:
            self._launch(active)
        blocks = [None if one.ended else len(one.tokens) for one in speaking]
        dims = self.model.dims
        passed = Passed(blocks, self._chosen[: len(active)], dims.stop_speech, dims.mask)
        self._launched = active, passed
        return passed

    @torch.inference_mode()
    def warm_up(self, report: Callable[[str], None]) -> None:
        """Captures every graph (or, without graphs, runs one pass) and reports progress."""
        if not self.graphs.enabled:
            self._run_pass(1, [(self.cache.scratch, self.model.dims.block)])
            report("T3: one pass run, no CUDA graphs")
            return
        # Largest first: the graphs' shared memory pool is then large enough for all later captures.
        work: list[tuple[Hashable, Callable[[], None]]] = []
        for rows, length in self._prompts.captured():
            work.append((("prefill", rows, length), partial(self._run_prefill, self._prompts.empty(rows, length))))
        self._rows.copy_(upload(torch.tensor([self._padding()] * len(self._rows)), self.model.device))
        for rows in buckets(self.max_rows)[::-1]:
            work.append((("pass", rows), partial(self._run_pass, rows, self._spans([], rows))))
        for count in buckets(self.max_slots)[::-1]:
            work.append((("unmask", count), partial(self._run_unmask, count)))
        for index, (key, function) in enumerate(work, 1):
            began = time.monotonic()
            self.graphs.capture(key, function)
            report(f"T3: CUDA graph {index} of {len(work)}, {time.monotonic() - began:.1f} s")

    def _begun(self, prompt: Prompt, past: int) -> Speaking:
        first = min(self.model.dims.block, prompt.max_tokens)
        return Speaking(prompt, past, [self.model.dims.mask] * first, left=prompt.max_tokens - first)

    def _state(self, slot: int, row: int) -> int:
        return ROWS * slot + row

    def _settle(self) -> None:
        """Takes the tokens of the last pass: the utterances go on to their next pass or block, or end."""
        if self._launched is None:
            return
        active, passed = self._launched
        self._launched = None
        for one, block in zip(active, passed.blocks(), strict=True):
            one.tokens, one.finished = block, []
            one.step += 1
            if passed.over(block):
                self._advance(one)

    def _advance(self, one: Speaking) -> None:
        """To the next block."""
        dims = self.model.dims
        if dims.stop_speech in one.tokens or not one.left:
            one.ended = True
            return
        following = min(dims.block, one.left)
        one.finished, one.tokens = one.tokens, [dims.mask] * following
        one.past, one.left = one.past + dims.block, one.left - following
        one.block, one.step = one.block + 1, 0

    def _launch(self, active: Sequence[Speaking]) -> None:
        """Uploads a pass and launches it."""
        rows, integers, floats = self._described(active)
        count = self._bucket(len(rows), self.max_rows)
        spans = self._spans(rows, count)
        rows += [self._padding()] * (count - len(rows))
        utterances = self._bucket(len(active), self.max_slots)
        device = self.model.device
        self._rows[:count].copy_(upload(torch.tensor(rows), device))
        padding = [0] * self._integers.shape[1]
        integers += [padding] * (utterances - len(active))
        floats += [[1.0] * len(FLOATS)] * (utterances - len(active))
        self._integers[:utterances].copy_(upload(torch.tensor(integers), device))
        self._floats[:utterances].copy_(upload(torch.tensor(floats, dtype=torch.float32), device))
        self.graphs.run(("pass", count), partial(self._run_pass, count, spans))
        self.graphs.run(("unmask", utterances), partial(self._run_unmask, utterances))

    def _described(self, active: Sequence[Speaking]) -> tuple[list[list[int]], list[list[int]], list[list[float]]]:
        """The rows of a pass, first those with current blocks, and its utterances."""
        current: list[list[int]] = []
        finished: list[list[int]] = []
        integers: list[list[int]] = []
        floats: list[list[float]] = []
        for one in active:
            first, last = len(current), len(current) + len(one.prompt.rows) - 1
            for row, extent in enumerate(one.prompt.rows):
                state = self._state(one.prompt.slot, row)
                current.append(self._row(extent, one.past, one.tokens, state, self._dummy))
                if one.finished:
                    before = one.past - len(one.finished)
                    finished.append(self._row(extent, before, one.finished, state, state))
            chosen, numbers = self._choice(one, first, last)
            integers.append(chosen)
            floats.append(numbers)
        return current + finished, integers, floats

    def _row(self, extent: Extent, past: int, tokens: list[int], state: int, to: int) -> list[int]:
        return [extent.start, past, len(tokens), state, to, *self._padded(tokens)]

    def _padding(self) -> list[int]:
        block = self.model.dims.block
        return [self.cache.scratch, 0, block, self._dummy, self._dummy, *[0] * block]

    def _padded(self, tokens: list[int]) -> list[int]:
        return tokens + [0] * (self.model.dims.block - len(tokens))

    def _choice(self, one: Speaking, conditional: int, unconditional: int) -> tuple[list[int], list[float]]:
        """The integers and floats of an utterance, in the order of `Choice`."""
        sampling, steps = one.prompt.sampling, one.prompt.sampling.num_steps
        masked = one.tokens.count(self.model.dims.mask)
        scheduled = counts(len(one.tokens), steps, sampling.omnivoice_schedule_t_shift)[one.step]
        keep = masked if one.step == steps - 1 else min(scheduled, masked)
        below, above, weight = quantile(masked, one.step, steps, sampling.time_shift_tau)
        early, noisy = sampling.time_shift_tau > 0, sampling.position_temperature > 0
        index = one.block * MAX_STEPS + one.step
        head = [conditional, unconditional, one.prompt.seed, index, keep, below, above, int(early), int(noisy)]
        return head + self._padded(one.tokens), [weight, sampling.temperature, sampling.cfg_weight]

    def _spans(self, rows: Sequence[Sequence[int]], count: int) -> list[tuple[int, int]]:
        """Where each row begins in the pool and how many positions its block attends to, padded to `count` rows."""
        padding = [(self.cache.scratch, self.model.dims.block)] * (count - len(rows))
        return [(start, past + length) for start, past, length, *_ in rows] + padding

    def _bucket(self, count: int, limit: int) -> int:
        return bucket(count, limit) if self.graphs.enabled else count

    def _run_prefill(self, placed: Placed) -> None:
        hidden = self.model.begin(placed.x, placed.context(self.cache), self.cache)
        self._before.index_copy_(0, self._to[: placed.rows], hidden)

    def _run_pass(self, count: int, spans: Sequence[tuple[int, int]]) -> None:
        start, past, length, state, to = self._rows[:count, :_PLACES].unbind(1)
        tokens = self._rows[:count, _PLACES:]
        blocks = Blocks.of(self.cache, start, past, length, tokens.shape[1], spans)
        hidden = self.model.denoise(tokens, blocks, self.cache)
        self._before.index_copy_(0, to, hidden[:, -1])  # finished blocks are whole
        before = self._before[state][:, None]
        self._logits[:count] = self.model.logits(torch.cat([before, hidden[:, :-1]], dim=1))

    def _run_unmask(self, count: int) -> None:
        choice = Choice.of(self._integers[:count], self._floats[:count])
        self._chosen[:count] = self._unmask(choice)

    def _unmask(self, choice: Choice) -> Tensor:
        """Separate from the rest so that tests can look at it."""
        return unmask(self._logits, self._prior, self.model.dims.mask, choice).tokens
