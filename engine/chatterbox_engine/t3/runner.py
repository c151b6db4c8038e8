"""Slots to tensors: prefill and decode of T3 for the utterances that the scheduler chose.

All state that a step changes lives on the device in one row per slot (`Slots`), so a step uploads nothing unless the
batch changed, and downloads only the drawn tokens, which the engine reads one step later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chatterbox_engine.checkpoint.families import ENGLISH, Family
from chatterbox_engine.kernels.device import upload
from chatterbox_engine.kernels.graphs import Graphs, bucket, buckets
from chatterbox_engine.t3 import sampling
from chatterbox_engine.t3.attention import Context
from chatterbox_engine.t3.extents import Extent, round_up
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.transformer import Transformer
from chatterbox_engine.types import SamplingParams

PREFILL_LENGTHS = (32, 64, 96, 128, 160, 224, 288, 352, 416, 480)
"""Inputs of a prompt (text and BOS) that graphs are captured for: in steps of 32 to where most segments of 300
characters are, then in larger ones for the languages that have more tokens."""
PREFILL_ROWS = (2, 8)
ROW_GRAIN = 4
"""Without graphs, decode rows are padded to a multiple of this. Our kernels do not need it, but on a CPU the products
of compiled steps are MKL's: those of 4, 8, 12, ... rows give each row the same bits, fewer or odd ones do not."""


@dataclass(frozen=True)
class Prompt:
    """What the runner needs to start one utterance."""

    slot: int
    rows: tuple[Extent, ...]  # conditional, then unconditional unless cfg_weight is 0
    text: Tensor  # [n] int64, from T3Dims.frame
    sampling: SamplingParams
    uniforms: Tensor  # [max_tokens + 1] float32 of [0, 1), one per step


class Drawn:
    """Tokens of one launch on their way to the host."""

    def __init__(self, tokens: Tensor) -> None:
        if tokens.is_cuda:
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._ready: torch.cuda.Event | None = torch.cuda.Event()
            self._ready.record()
        else:
            self._tokens = tokens.clone()
            self._ready = None

    def read(self) -> list[int]:
        """The tokens, in the order of the launch's utterances; waits for the device."""
        if self._ready is not None:
            self._ready.synchronize()
        tokens: list[int] = self._tokens.tolist()
        return tokens


class Slots:
    """Device state, one row per slot; the last row is a dummy that padding uses."""

    def __init__(self, count: int, vocab: int, max_tokens: int, device: torch.device) -> None:
        self.dummy = count
        rows = count + 1

        def integers() -> Tensor:
            return torch.zeros(rows, dtype=torch.int64, device=device)

        def floats() -> Tensor:
            return torch.ones(rows, dtype=torch.float32, device=device)

        self.token, self.step, self.prompt, self.alive = integers(), integers(), integers(), integers()
        self.prompt[self.dummy] = 1  # a dummy row sits at position 0 of the scratch extent for ever
        self.cfg, self.temperature, self.penalty = floats(), floats(), floats()
        self.min_p, self.top_p, self.top_k = floats(), floats(), integers()
        self.seen = torch.zeros(rows, vocab, dtype=torch.bool, device=device)
        # one more than can be drawn: the step that runs before a stop is noticed draws too
        self.uniforms = torch.zeros(rows, max_tokens + 2, dtype=torch.float32, device=device)

    def parameters(self, slot: Tensor) -> sampling.Parameters:
        """How the tokens of these slots are drawn; slot: [rows] int64."""
        return sampling.Parameters(
            self.temperature[slot], self.penalty[slot], self.min_p[slot], self.top_p[slot], self.top_k[slot]
        )

    def fill(self, prompt: Prompt, length: int, bos: int) -> None:
        """Sets a slot up for a new utterance. length: positions of its prompt."""
        slot, params = prompt.slot, prompt.sampling
        # fill_ hands the number to the kernel; an assignment would copy it from the host and wait for the device
        self.step[slot].fill_(0)
        self.prompt[slot].fill_(length)
        self.alive[slot].fill_(1)
        self.cfg[slot].fill_(params.cfg_weight)
        self.temperature[slot].fill_(params.temperature)
        self.penalty[slot].fill_(params.repetition_penalty)
        self.min_p[slot].fill_(params.min_p)
        self.top_p[slot].fill_(params.top_p)
        self.top_k[slot].fill_(params.top_k)
        self.seen[slot].fill_(False)
        self.seen[slot, bos].fill_(True)
        self.uniforms[slot, : len(prompt.uniforms)] = upload(prompt.uniforms, self.uniforms.device)


class Runner:
    """Launches T3's work. Owned by the engine's thread; on CUDA it uses the current stream of that thread."""

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        max_slots: int,
        *,
        family: Family = ENGLISH,
        graphs: Graphs,
        compile_mode: str | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.max_slots = max_slots
        self.max_rows = family.rows * max_slots
        self.family = family
        self.graphs = graphs
        dims = model.dims
        device = model.device
        self.slots = Slots(max_slots, dims.speech_vocab, dims.max_speech_tokens, device)
        rows = max(round_up(self.max_rows, ROW_GRAIN), PREFILL_ROWS[-1])
        self._logits = torch.zeros(rows, dims.speech_vocab, dtype=model.dtype, device=device)
        self._prompt: tuple[Tensor, Tensor] | None = None
        if graphs.enabled:
            self._prompt = self._new_prompt_tensors(PREFILL_ROWS[-1], PREFILL_LENGTHS[-1])
        self._drawn = torch.zeros(max_slots, dtype=torch.int64, device=device)
        # The batch: which slot and extent each row belongs to, and which rows each utterance is guided by.
        self._row_slot = torch.full((rows,), self.slots.dummy, device=device)
        self._row_start = torch.full((rows,), cache.scratch, device=device)
        self._batch = torch.zeros(3, max_slots, dtype=torch.int64, device=device)  # slot, conditional, unconditional
        self._current: tuple[int, ...] = ()
        self._rows = 0
        self._decode_step = model.decode
        if compile_mode is not None:
            # dynamic: one compilation serves every number of rows
            self._decode_step = torch.compile(model.decode, mode=compile_mode, dynamic=True)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt], prefixes: Sequence[Tensor]) -> Drawn:
        """Runs prompts behind their voices' prefixes (`Transformer.prefix`) and draws each utterance's first token."""
        starting = list(zip(prompts, prefixes, strict=True))
        size = PREFILL_ROWS[-1] // self.family.rows if self.graphs.enabled else 1
        drawn = [self._prefill_group(starting[i : i + size]) for i in range(0, len(starting), size)]
        self._current = ()  # the batch tensors were used for the prompts
        return Drawn(torch.cat(drawn))

    @torch.inference_mode()
    def decode(self, utterances: Sequence[Prompt]) -> Drawn:
        """One step for these running utterances: feeds each its last token and draws the next."""
        batch = tuple(utterance.slot for utterance in utterances)
        if batch != self._current:
            self._upload(utterances)
            self._current = batch
        rows = self._row_bucket(self._rows)
        self.graphs.run(("decode", rows), partial(self._decode_rows, rows))
        return Drawn(self._sample(utterances))

    @torch.inference_mode()
    def warm_up(self, report: Callable[[str], None]) -> None:
        """Captures every graph (or, without graphs, runs one step), saying how far it is."""
        if not self.graphs.enabled:
            self._decode_rows(ROW_GRAIN)
            report("T3: one step run, no CUDA graphs")
            return
        # Largest first: the graphs' shared memory pool is then large enough for all later captures.
        work: list[tuple[Hashable, Callable[[], None]]] = []
        for rows in PREFILL_ROWS[::-1]:
            for length in PREFILL_LENGTHS[::-1]:
                prefill = partial(self._prefill_rows, *self._prompt_tensors(rows, length), self._captured_reach(length))
                work.append((("prefill", rows, length), prefill))
        for rows in buckets(self.max_rows)[::-1]:
            work.append((("decode", rows), partial(self._decode_rows, rows)))
        for count in buckets(self.max_slots)[::-1]:
            for use_top in (True, False):
                work.append((("sample", count, use_top), partial(self._sample_rows, count, use_top)))
        for index, (key, function) in enumerate(work, 1):
            began = time.monotonic()
            self.graphs.capture(key, function)
            report(f"T3: CUDA graph {index} of {len(work)}, {time.monotonic() - began:.1f} s")

    def _captured_reach(self, length: int) -> int:
        """Positions of a row in a captured prefill: it may follow the longest prefix."""
        return self.model.dims.prefix + length

    def _row_bucket(self, rows: int) -> int:
        return bucket(rows, self.max_rows) if self.graphs.enabled else round_up(rows, ROW_GRAIN)

    def _count_bucket(self, count: int) -> int:
        return bucket(count, self.max_slots) if self.graphs.enabled else count

    def _upload(self, utterances: Sequence[Prompt]) -> None:
        """Describes a new batch to the device."""
        slots: list[int] = []
        starts: list[int] = []
        batch: list[tuple[int, int, int]] = []
        for utterance in utterances:
            first = len(slots)
            slots += [utterance.slot] * len(utterance.rows)
            starts += [extent.start for extent in utterance.rows]
            batch.append((utterance.slot, first, len(slots) - 1))
        self._rows = len(slots)
        rows = self._row_bucket(len(slots))
        count = self._count_bucket(len(batch))
        slots += [self.slots.dummy] * (rows - len(slots))
        starts += [self.cache.scratch] * (rows - len(starts))
        batch += [(self.slots.dummy, 0, 0)] * (count - len(batch))
        device = self.model.device
        self._row_slot[:rows] = upload(torch.tensor(slots), device)
        self._row_start[:rows] = upload(torch.tensor(starts), device)
        self._batch[:, :count] = upload(torch.tensor(batch), device).T

    def _decode_rows(self, rows: int) -> None:
        slot, start = self._row_slot[:rows], self._row_start[:rows]
        step = self.slots.step[slot]
        position = self.slots.prompt[slot] + step - 1
        self._logits[:rows] = self._decode_step(self.slots.token[slot], step, start, position, self.cache)

    def _sample(self, utterances: Sequence[Prompt]) -> Tensor:
        """Draws a token for each utterance of the uploaded batch: a view of [utterances]."""
        count = self._count_bucket(len(utterances))
        use_top = any(utterance.sampling.top_p < 1 or utterance.sampling.top_k > 0 for utterance in utterances)
        self.graphs.run(("sample", count, use_top), partial(self._sample_rows, count, use_top))
        return self._drawn[: len(utterances)]

    def _sample_rows(self, count: int, use_top: bool) -> None:
        slots, bos = self.slots, self.model.dims.start_speech
        if self._logits.is_cuda:
            from chatterbox_engine.t3.sampling_cuda import draw_rows

            draw_rows(
                self._logits,
                self._batch[:, :count],
                slots,
                self._drawn[:count],
                self.family.processors,
                use_top=use_top,
                forgotten=bos if self.family.bos_once else None,
            )
            return
        slot, conditional, unconditional = self._batch[:, :count].unbind()
        logits = sampling.guide(self._logits[conditional], self._logits[unconditional], slots.cfg[slot])
        step = slots.step[slot]
        token = sampling.choose(
            logits,
            slots.seen[slot],
            slots.parameters(slot),
            slots.uniforms[slot, step],
            self.family.processors,
            use_top=use_top,
        )
        slots.token[slot] = token
        if self.family.bos_once:
            heard = slots.seen.select(1, bos)
            heard[slot] = heard[slot] & (step > 0)
        # a Python True would be copied from the host, which no graph can capture
        slots.seen[slot, token] = torch.ones_like(token, dtype=torch.bool)
        slots.step.index_add_(0, slot, slots.alive[slot])
        self._drawn[:count] = token

    def _prefill_group(self, starting: Sequence[tuple[Prompt, Tensor]]) -> Tensor:
        """Prompts side by side, each behind its prefix, padded to the longest; returns their first tokens [prompts]."""
        device = self.model.device
        prompts = [prompt for prompt, _ in starting]
        rows = sum(len(prompt.rows) for prompt in prompts)
        length = max(len(prompt.text) for prompt in prompts) + self.model.dims.bos
        reach = max(prefix.shape[2] for _, prefix in starting) + length
        if self.graphs.enabled and length <= PREFILL_LENGTHS[-1]:
            rows = next(size for size in PREFILL_ROWS if size >= rows)
            length = next(size for size in PREFILL_LENGTHS if size >= length)
            reach = self._captured_reach(length)
        x, places = self._prompt_tensors(rows, length)
        placed: list[tuple[int, int, int]] = []
        for prompt, prefix in starting:
            embedded = self.model.prompt(upload(prompt.text, device))
            past, own = prefix.shape[2], embedded.shape[1]
            self.slots.fill(prompt, past + own, self.model.dims.start_speech)
            for extent, embedded_row in zip(prompt.rows, embedded, strict=False):
                self.cache.fill(extent, prefix)
                x[len(placed), :own] = embedded_row
                placed.append((extent.start, past, own - 1))
        placed += [(self.cache.scratch, 0, 0)] * (rows - len(placed))
        places.copy_(upload(torch.tensor(placed), device).T)
        self.graphs.run(("prefill", rows, length), partial(self._prefill_rows, x, places, reach))
        self._upload(prompts)
        return self._sample(prompts).clone()

    def _prompt_tensors(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs of a prefill: embeddings [rows, length, hidden], and [3, rows] int64 with the start of each row's
        extent, the positions of its prefix and its last input. Static where a graph may read them."""
        if self._prompt is None or length > PREFILL_LENGTHS[-1]:
            return self._new_prompt_tensors(rows, length)
        x, places = self._prompt
        return x[:rows, :length], places[:, :rows]

    def _new_prompt_tensors(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        device = self.model.device
        x = torch.zeros(rows, length, self.model.dims.hidden, dtype=self.model.dtype, device=device)
        places = torch.zeros(3, rows, dtype=torch.int64, device=device)
        places[0] = self.cache.scratch
        return x, places

    def _prefill_rows(self, x: Tensor, places: Tensor, reach: int) -> None:
        start, past, last = places.unbind()
        context = Context.of(self.cache, start, past, last, length=x.shape[1], reach=reach)
        self._logits[: len(x)] = self.model.prefill(x, context, self.cache)
