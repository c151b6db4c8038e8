"""Prefill and decode steps of T3 for the utterances that the scheduler selects.

All state that a step changes lives on the device, one row per slot (`Slots`). A step uploads nothing unless the batch
changed, and downloads only the drawn tokens, which the engine reads one step later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from chatterbox_engine.checkpoint.families import ENGLISH, Family
from chatterbox_engine.kernels.device import Download, upload
from chatterbox_engine.kernels.graphs import Graphs, bucket, buckets
from chatterbox_engine.t3.alignment import SHORT_TEXT, Alignment, hold_stop
from chatterbox_engine.t3.extents import Extent, round_up
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.prompts import PREFILL_ROWS, Placed, Prompt, Prompts
from chatterbox_engine.t3.sampler import Sampler
from chatterbox_engine.t3.slots import Batch, Slots
from chatterbox_engine.t3.transformer import Queries, Transformer
from chatterbox_engine.types import Head, Reading

ROW_GRAIN = 4
"""Without graphs, decode rows are padded to a multiple of this. The fused kernels do not need it, but on a CPU the
products of compiled steps are MKL's: a row's bits are the same in products of 4, 8, 12, ... rows, but differ for other
numbers."""


class Drawn:
    """Tokens of one launch on their way to the host, and what was read of their steps."""

    def __init__(self, tokens: Tensor, readings: Tensor | None = None) -> None:
        """tokens: [utterances] int64; readings: [utterances, READINGS] float32."""
        self._tokens, self._readings = Download(tokens), None if readings is None else Download(readings)

    def read(self) -> list[list[int]]:
        """The new token of each utterance, in the order of the launch's; waits for the device."""
        return [[token] for token in self._tokens.read()]

    def readings(self) -> list[Reading]:
        """Where T3 looked while it drew them, after `read`; empty where no utterance wanted it."""
        return [] if self._readings is None else [Reading(*numbers) for numbers in self._readings.read()]


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
        heads: Sequence[Head] = (),
    ) -> None:
        """heads: those that follow the text; without them no step can be read."""
        self.model = model
        self.cache = cache
        self.max_slots = max_slots
        self.max_rows = family.rows * max_slots
        self.family = family
        self.graphs = graphs
        dims = model.dims
        device = model.device
        self.slots = Slots(max_slots, dims.speech_vocab, dims.max_speech_tokens, device)
        self._sampler = Sampler(self.slots, family, dims.start_speech)
        rows = max(round_up(self.max_rows, ROW_GRAIN), PREFILL_ROWS[-1])
        self._logits = torch.zeros(rows, dims.speech_vocab, dtype=model.dtype, device=device)
        self.alignment = Alignment(model, cache, self.slots, heads, rows) if heads else None
        self._prompts = Prompts(model, cache, graphs)
        self._prefill_batch = Batch("prefill", self._prompts.group(family.rows), self.slots)
        self._decode_batch = Batch("decode", max_slots, self.slots)
        # of the decode batch: which slot and extent each row belongs to
        self._row_slot = torch.full((rows,), self.slots.dummy, device=device)
        self._row_start = torch.full((rows,), cache.scratch, device=device)
        self._decoding: list[tuple[int, tuple[Extent, ...]]] = []
        self._decode_rows = 0
        self._decode_step = model.decode
        if compile_mode is not None:
            # dynamic: one compilation serves every number of rows
            self._decode_step = torch.compile(model.decode, mode=compile_mode, dynamic=True)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt], prefixes: Sequence[Tensor]) -> Drawn:
        """Runs prompts after their voices' prefixes (`Transformer.prefix`) and draws each utterance's first token."""
        starting = list(zip(prompts, prefixes, strict=True))
        size = self._prefill_batch.size
        return Drawn(torch.cat([self._prefill_group(starting[i : i + size]) for i in range(0, len(starting), size)]))

    @torch.inference_mode()
    def decode(self, utterances: Sequence[Prompt]) -> Drawn:
        """One step for these running utterances: feeds each its last token and draws the next."""
        decoding = [(utterance.slot, utterance.rows) for utterance in utterances]
        if decoding != self._decoding:
            self._upload_decode_batch(utterances)
            self._decoding = decoding
        rows = self._row_bucket(self._decode_rows)
        if self.alignment is not None and any(utterance.aligned for utterance in utterances):
            return self._decode_aligned(rows, utterances, self.alignment)
        self.graphs.run(("decode", rows), partial(self._run_decode, rows))
        return Drawn(self._sample(self._decode_batch, utterances))

    def _decode_aligned(self, rows: int, utterances: Sequence[Prompt], alignment: Alignment) -> Drawn:
        """A step that is read before its tokens are drawn."""
        self.graphs.run(("decode", rows, "aligned"), partial(self._run_decode, rows, alignment.queries(rows)))
        count = self._count_bucket(self._decode_batch, len(utterances))
        self.graphs.run(("read", count), partial(self._read, alignment, count))
        tokens = self._sample(self._decode_batch, utterances)
        return Drawn(tokens, alignment.readings(len(utterances)))

    def _read(self, alignment: Alignment, count: int) -> None:
        alignment.read(self._logits, self._decode_batch, count, self._row_start)

    @torch.inference_mode()
    def warm_up(self, report: Callable[[str], None]) -> None:
        """Captures every graph (or, without graphs, runs one step) and reports progress."""
        if not self.graphs.enabled:
            self._run_decode(ROW_GRAIN)
            report("T3: one step run, no CUDA graphs")
            return
        # Largest first: the graphs' shared memory pool is then large enough for all later captures.
        work: list[tuple[Hashable, Callable[[], None]]] = []
        for rows, length in self._prompts.captured():
            prefill = partial(self._run_prefill, self._prompts.empty(rows, length))
            work.append((("prefill", rows, length), prefill))
        for rows in buckets(self.max_rows)[::-1]:
            work.append((("decode", rows), partial(self._run_decode, rows)))
            if self.alignment is not None:
                kept = partial(self._run_decode, rows, self.alignment.queries(rows))
                work.append((("decode", rows, "aligned"), kept))
        for batch in (self._decode_batch, self._prefill_batch):
            for count in buckets(batch.size)[::-1]:
                for use_top in (True, False):
                    work.append((("sample", batch.name, count, use_top), self._sampling(batch, count, use_top)))
        if self.alignment is not None:
            for count in buckets(self.max_slots)[::-1]:
                work.append((("read", count), partial(self._read, self.alignment, count)))
        for index, (key, function) in enumerate(work, 1):
            began = time.monotonic()
            self.graphs.capture(key, function)
            report(f"T3: CUDA graph {index} of {len(work)}, {time.monotonic() - began:.1f} s")

    def _row_bucket(self, rows: int) -> int:
        return bucket(rows, self.max_rows) if self.graphs.enabled else round_up(rows, ROW_GRAIN)

    def _upload_decode_batch(self, utterances: Sequence[Prompt]) -> None:
        """Uploads the description of a new decode batch."""
        slots = [utterance.slot for utterance in utterances for _ in utterance.rows]
        starts = [extent.start for utterance in utterances for extent in utterance.rows]
        self._decode_rows = len(slots)
        rows = self._row_bucket(len(slots))
        slots += [self.slots.dummy] * (rows - len(slots))
        starts += [self.cache.scratch] * (rows - len(starts))
        device = self.model.device
        self._row_slot[:rows] = upload(torch.tensor(slots), device)
        self._row_start[:rows] = upload(torch.tensor(starts), device)
        self._fill(self._decode_batch, utterances)

    def _fill(self, batch: Batch, utterances: Sequence[Prompt]) -> None:
        """Sets the rows of the utterances' logits in a batch, in the order of the utterances."""
        entries: list[tuple[int, int, int]] = []
        row = 0
        for utterance in utterances:
            last = row + len(utterance.rows) - 1  # the conditional row again where there is no unconditional one
            entries.append((utterance.slot, row, last))
            row = last + 1
        batch.fill(entries, self._count_bucket(batch, len(entries)))

    def _count_bucket(self, batch: Batch, count: int) -> int:
        return bucket(count, batch.size) if self.graphs.enabled else count

    def _sample(self, batch: Batch, utterances: Sequence[Prompt]) -> Tensor:
        """Draws a token for each utterance of a batch: a view of [utterances]."""
        count = self._count_bucket(batch, len(utterances))
        use_top = any(utterance.sampling.top_p < 1 or utterance.sampling.top_k > 0 for utterance in utterances)
        self.graphs.run(("sample", batch.name, count, use_top), self._sampling(batch, count, use_top))
        return batch.tokens(len(utterances))

    def _sampling(self, batch: Batch, count: int, use_top: bool) -> Callable[[], None]:
        return partial(self._sampler, self._logits, batch, count, use_top=use_top)

    def _run_decode(self, rows: int, queries: Queries | None = None) -> None:
        slot, start = self._row_slot[:rows], self._row_start[:rows]
        step = self.slots.step[slot]
        position = self.slots.prompt[slot] + step - 1
        kept = () if queries is None else (queries,)
        self._logits[:rows] = self._decode_step(self.slots.token[slot], step, start, position, self.cache, *kept)

    def _prefill_group(self, starting: Sequence[tuple[Prompt, Tensor]]) -> Tensor:
        """Prefills a batch of prompts, each after its prefix, padded to the longest; returns the first tokens
        [prompts]."""
        prompts = [prompt for prompt, _ in starting]
        placed, lengths = self._prompts.place(starting)
        for prompt, length in zip(prompts, lengths, strict=True):
            self.slots.fill(
                prompt.slot, prompt.sampling, prompt.uniforms, length=length, bos=self.model.dims.start_speech
            )
            if self.alignment is not None:
                end = length - self.model.dims.bos
                self.alignment.fill(prompt.slot, (end - len(prompt.text), end), holding=prompt.holding)
        self.graphs.run(("prefill", placed.rows, placed.length), partial(self._run_prefill, placed))
        self._fill(self._prefill_batch, prompts)
        self._hold_stop(prompts)
        return self._sample(self._prefill_batch, prompts).clone()  # the next group's are written to the same memory

    def _hold_stop(self, prompts: Sequence[Prompt]) -> None:
        """Takes the first step's stop token from those that hold it."""
        row = 0
        for prompt in prompts:
            if prompt.holding and len(prompt.text) > SHORT_TEXT:
                hold_stop(self._logits, range(row, row + len(prompt.rows)), self.model.dims.stop_speech)
            row += len(prompt.rows)

    def _run_prefill(self, placed: Placed) -> None:
        self._logits[: placed.rows] = self.model.prefill(placed.x, placed.context(self.cache), self.cache)
