"""Prefill and decode steps of T3 for the utterances that the scheduler selects.

All state that a step changes lives on the device, one row per slot (`Slots`). A step uploads nothing unless the batch
changed, and downloads only the drawn tokens, which the engine reads one step later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chatterbox_engine.checkpoint.families import ENGLISH, Family
from chatterbox_engine.kernels.device import Event, cuda, upload
from chatterbox_engine.kernels.graphs import Graphs, bucket, buckets
from chatterbox_engine.t3.alignment import SHORT_TEXT, Alignment, hold_stop
from chatterbox_engine.t3.attention import Context
from chatterbox_engine.t3.extents import Extent, round_up
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.sampler import Sampler
from chatterbox_engine.t3.slots import Batch, Slots
from chatterbox_engine.t3.transformer import Queries, Transformer
from chatterbox_engine.types import Head, Reading, SamplingParams

PREFILL_LENGTHS = (32, 64, 96, 128, 160, 224, 288, 352, 416, 480)
"""Lengths of a prompt (text and BOS) that graphs are captured for: in steps of 32 up to the length of most segments of
300 characters, then in larger ones for the languages that have more tokens."""
PREFILL_ROWS = (2, 8)
"""Rows of prompts that graphs are captured for."""
ROW_GRAIN = 4
"""Without graphs, decode rows are padded to a multiple of this. The fused kernels do not need it, but on a CPU the
products of compiled steps are MKL's: a row's bits are the same in products of 4, 8, 12, ... rows, but differ for other
numbers."""


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


class Drawn:
    """Tokens of one launch on their way to the host, and what was read of their steps."""

    def __init__(self, tokens: Tensor, readings: Tensor | None = None) -> None:
        """tokens: [utterances] int64; readings: [utterances, READINGS] float32."""
        self._tokens, self._readings = _to_host(tokens), None if readings is None else _to_host(readings)
        self._ready: Event | None = cuda().record() if tokens.is_cuda else None

    def read(self) -> list[int]:
        """The tokens, in the order of the launch's utterances; waits for the device."""
        if self._ready is not None:
            self._ready.synchronize()
        tokens: list[int] = self._tokens.tolist()
        return tokens

    def readings(self) -> list[Reading]:
        """Where T3 looked while it drew them, after `read`; empty where no utterance wanted it."""
        return [] if self._readings is None else [Reading(*numbers) for numbers in self._readings.tolist()]


def _to_host(tensor: Tensor) -> Tensor:
    """A copy on the host, which on CUDA is under way."""
    if not tensor.is_cuda:
        return tensor.clone()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


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
        self._prompt: tuple[Tensor, Tensor] | None = None
        if graphs.enabled:
            self._prompt = self._new_prompt_tensors(PREFILL_ROWS[-1], PREFILL_LENGTHS[-1])
        self._prefill_batch = Batch("prefill", PREFILL_ROWS[-1] // family.rows if graphs.enabled else 1, self.slots)
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
        for rows in PREFILL_ROWS[::-1]:
            for length in PREFILL_LENGTHS[::-1]:
                prefill = partial(self._run_prefill, *self._prompt_tensors(rows, length), self._captured_reach(length))
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

    def _captured_reach(self, length: int) -> int:
        """Positions of a row in a captured prefill: it may follow the longest prefix."""
        return self.model.dims.prefix + length

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
        rows, length, reach = self._prefill_size(starting)
        x, places = self._prompt_tensors(rows, length)
        self._place(starting, x, places)
        self.graphs.run(("prefill", rows, length), partial(self._run_prefill, x, places, reach))
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

    def _prefill_size(self, starting: Sequence[tuple[Prompt, Tensor]]) -> tuple[int, int, int]:
        """Rows, inputs and positions of a row of a prefill: of a captured one if there is one that is large enough."""
        rows = sum(len(prompt.rows) for prompt, _ in starting)
        length = max(len(prompt.text) for prompt, _ in starting) + self.model.dims.bos
        if self.graphs.enabled and length <= PREFILL_LENGTHS[-1]:
            rows = next(size for size in PREFILL_ROWS if size >= rows)
            length = next(size for size in PREFILL_LENGTHS if size >= length)
            return rows, length, self._captured_reach(length)
        return rows, length, max(prefix.shape[2] for _, prefix in starting) + length

    def _place(self, starting: Sequence[tuple[Prompt, Tensor]], x: Tensor, places: Tensor) -> None:
        """Fills the slots, the heads of the extents and the inputs of a prefill."""
        device = self.model.device
        placed: list[tuple[int, int, int]] = []
        for prompt, prefix in starting:
            embedded = self.model.prompt(upload(prompt.text, device))
            past, own = prefix.shape[2], embedded.shape[1]
            self.slots.fill(
                prompt.slot, prompt.sampling, prompt.uniforms, length=past + own, bos=self.model.dims.start_speech
            )
            if self.alignment is not None:
                self.alignment.fill(prompt.slot, (past, past + len(prompt.text)), holding=prompt.holding)
            for extent, embedded_row in zip(prompt.rows, embedded, strict=False):
                self.cache.fill(extent, prefix)
                x[len(placed), :own] = embedded_row
                placed.append((extent.start, past, own - 1))
        placed += [(self.cache.scratch, 0, 0)] * (len(x) - len(placed))
        places.copy_(upload(torch.tensor(placed), device).T)

    def _prompt_tensors(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs of a prefill: embeddings [rows, length, hidden], and [3, rows] int64 with the start of each row's
        extent, the positions of its prefix and its last input. Static where a graph may read them."""
        if self._prompt is None or length > PREFILL_LENGTHS[-1]:
            return self._new_prompt_tensors(rows, length)
        x, places = self._prompt
        return x[:rows, :length], places[:, :rows]

    def _new_prompt_tensors(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        device = self.model.device
        x = torch.zeros(rows, length, self.model.dims.hidden, dtype=self.model.stream_dtype, device=device)
        places = torch.zeros(3, rows, dtype=torch.int64, device=device)
        places[0] = self.cache.scratch
        return x, places

    def _run_prefill(self, x: Tensor, places: Tensor, reach: int) -> None:
        start, past, last = places.unbind()
        context = Context.of(self.cache, start, past, last, length=x.shape[1], reach=reach)
        self._logits[: len(x)] = self.model.prefill(x, context, self.cache)
