"""The engine's T3 half without threads: scheduler and runner over requests that arrive and are cancelled at chosen
steps."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from chatterbox_engine.assemble import BACKBONES
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.families import ENGLISH, Family
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.synthesis.parts import DrawnTokens
from chatterbox_engine.synthesis.scheduler import Place, Scheduler
from chatterbox_engine.t3.attention import Context
from chatterbox_engine.t3.block_attention import Blocks
from chatterbox_engine.t3.block_runner import BlockRunner
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.flash import FlashT3
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.t3.quantize import quantize
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.t3.transformer import Transformer
from chatterbox_engine.types import SamplingParams, T3Conditionals
from chatterbox_engine.voices.cache import Memo

CPU = torch.device("cpu")
SLOTS = 6
EXTENT = 640  # positions of a row in `teacher_forced`
CACHE_LEN = 256


@dataclass(eq=False)
class Request:
    """One utterance: its parameters, the step of its arrival, and the steps after which it is cancelled, if any."""

    text_length: int
    sampling: SamplingParams
    seed: int
    max_tokens: int
    arrives: int = 0
    cancelled_after: int | None = None
    prefix: int = 34
    prompt_tokens: int | None = None
    """Number of the voice's speech tokens that T3 uses; each number makes a different voice."""
    first: bool = True
    batch: bool = False
    preemptible: bool = False
    place: Place | None = None
    prompt: Prompt | None = None
    tokens: list[int] = field(default_factory=list)
    ending: str | None = None

    @property
    def row_positions(self) -> list[int]:
        return [self.prefix + self.text_length + 4 + self.max_tokens + 1] * (2 if self.sampling.cfg_weight else 1)

    def text(self) -> Tensor:
        inner = torch.randint(3, 200, (self.text_length,), generator=torch.Generator().manual_seed(self.seed))
        return torch.cat([torch.tensor([255]), inner, torch.tensor([0])])

    def start(self) -> Prompt:
        assert self.place is not None
        uniforms = torch.rand(self.max_tokens + 1, generator=torch.Generator().manual_seed(self.seed))
        self.prompt = Prompt(self.place.slot, self.place.rows, self.text(), self.sampling, uniforms, seed=self.seed)
        return self.prompt


class Loop:
    """Scheduler and runner as the engine drives them, tokens read a step late, without threads."""

    def __init__(
        self,
        model: Transformer,
        voice: T3Conditionals,
        *,
        family: Family = ENGLISH,
        slots: int = SLOTS,
        cache_len: int = CACHE_LEN,
        prefixes: int = 1 << 30,
    ) -> None:
        """prefixes: bytes of the cache of voices' prefixes."""
        positions = slots * 2 * cache_len
        self.model, self.voice = model, voice
        self.cache = KVCache(model.dims, positions, device=CPU, dtype=model.dtype)
        self.runner = runner_of(family, model, self.cache, slots, Graphs(CPU, enabled=False))
        self.prefixes: Memo[Tensor] = Memo(prefixes, lambda prefix: prefix.nbytes)
        self.scheduler: Scheduler[Request] = Scheduler(max_slots=slots, positions=positions, max_prefills=2)

    def run(self, requests: list[Request]) -> None:
        """Runs every request to its end."""
        coming = sorted(requests, key=lambda request: request.arrives)
        pending: list[tuple[list[Request], DrawnTokens]] = []
        for step in range(10_000):
            while coming and coming[0].arrives <= step:
                self.scheduler.add(coming.pop(0))
            for request in requests:
                if request.ending is None and request.cancelled_after == step - request.arrives:
                    self._end(request, "cancelled")
            launched = self._launch()
            self._publish(pending)
            pending = launched
            if not coming and not pending and self.scheduler.idle:
                return
        raise AssertionError("did not end")

    def _launch(self) -> list[tuple[list[Request], DrawnTokens]]:
        plan = self.scheduler.schedule()
        launched: list[tuple[list[Request], DrawnTokens]] = []
        if plan.decode:
            launched.append((plan.decode, self.runner.decode([r.prompt for r in plan.decode if r.prompt])))
        if plan.prefill:
            prompts, prefixes = [r.start() for r in plan.prefill], [self._prefix(r) for r in plan.prefill]
            launched.append((plan.prefill, self.runner.prefill(prompts, prefixes)))
        return launched

    def _prefix(self, request: Request) -> Tensor:
        kept, exaggeration = request.prompt_tokens, request.sampling.exaggeration
        voice = replace(self.voice, prompt_tokens=self.voice.prompt_tokens[:kept])
        return self.prefixes.get((kept, exaggeration), lambda: self.model.prefix(voice, exaggeration))

    def _publish(self, pending: list[tuple[list[Request], DrawnTokens]]) -> None:
        for requests, drawn in pending:
            for request, tokens in zip(requests, drawn.read(), strict=True):
                for token in tokens:
                    self._take(request, token)

    def _take(self, request: Request, token: int) -> None:
        if request.ending is not None:
            return
        if token == self.model.dims.stop_speech:
            self._end(request, "stop")
            return
        request.tokens.append(token)
        if len(request.tokens) == request.max_tokens:
            self._end(request, "length")

    def _end(self, request: Request, how: str) -> None:
        request.ending = how
        self.scheduler.release(request)


def runner_of(family: Family, model: Transformer, cache: KVCache, slots: int, graphs: Graphs) -> Runner | BlockRunner:
    """The runner that a family has."""
    if isinstance(model, FlashT3):
        return BlockRunner(model, cache, slots, graphs=graphs)
    return Runner(model, cache, slots, family=family, graphs=graphs)


@dataclass(frozen=True)
class Served:
    """A checkpoint's T3, its voice, and the parameters of its requests."""

    family: Family
    model: Transformer
    voice: T3Conditionals

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        device: torch.device = CPU,
        *,
        dtype: torch.dtype = torch.float32,
        quantization: str = "none",
    ) -> Served:
        dims, conditionals = checkpoint.dims.t3, checkpoint.conditionals()
        assert conditionals is not None
        model = BACKBONES[type(dims)].from_state_dict(checkpoint.t3_state(), dims, device=device, dtype=dtype)
        if quantization != "none":
            quantize(model, quantization)
        return cls(checkpoint.family, model, conditionals.t3)

    def loop(self, **sizes: int) -> Loop:
        return Loop(self.model, self.voice, family=self.family, **sizes)

    def supported(self, request: Request) -> Request:
        """The request with its family's prefix, and its defaults for parameters that it does not support."""
        names = [item.name for item in fields(SamplingParams) if item.name not in self.family.inputs]
        kept = {name: getattr(self.family.sampling, name) for name in names}
        return replace(request, sampling=replace(request.sampling, **kept), prefix=self.model.dims.prefix)


@torch.inference_mode()
def teacher_forced(
    model: Transformer, voice: T3Conditionals, text: Tensor, forced: Tensor, *, exaggeration: float = 0.5
) -> Tensor:
    """Logits after the prompt and after each forced token: [1 + tokens, rows, vocab]. Flash's are of two passes over
    each block, first of masks alone, then of the forced tokens: [passes, rows, block, vocab]."""
    prefix, prompt = model.prefix(voice, exaggeration), model.prompt(text)
    (rows, own, _), past = prompt.shape, prefix.shape[2]
    cache = KVCache(model.dims, (rows + 1) * EXTENT, device=model.device, dtype=model.dtype)
    start = EXTENT * torch.arange(rows, 0, -1, device=model.device)

    def each(value: int) -> Tensor:
        return torch.full((rows,), value, device=model.device)

    for row, first in enumerate(start.tolist()):
        cache.fill(Extent(first, EXTENT), model.prefix_of_row(prefix, row))
    context = Context.of(cache, start, each(past), each(own - 1), length=own, reach=past + own)
    if isinstance(model, FlashT3):
        hidden = model.begin(prompt, context, cache)
        return torch.stack(_forced_blocks(model, cache, start, past + own, hidden, forced))
    logits = [model.prefill(prompt, context, cache)]
    for step, token in enumerate(forced):
        logits.append(model.decode(token.expand(rows), each(step + 1), start, each(past + own + step), cache))
    return torch.stack(logits)


def _forced_blocks(
    model: FlashT3, cache: KVCache, start: Tensor, past: int, hidden: Tensor, forced: Tensor
) -> list[Tensor]:
    """The logits of the passes. hidden: [rows, hidden], of each row's last input before its first block."""
    block, logits = model.dims.block, list[Tensor]()
    for first in range(0, len(forced), block):
        known, masks = forced[first : first + block], forced.new_full((block,), model.dims.mask)
        held = torch.full_like(start, past + first)
        spans = [(row, past + first + block) for row in start.tolist()]
        blocks = Blocks.of(cache, start, held, torch.full_like(start, block), block, spans)
        for tokens in (masks, torch.cat([known, masks[len(known) :]])):
            states = model.denoise(tokens.expand(len(start), block), blocks, cache)
            logits.append(model.logits(torch.cat([hidden[:, None], states[:, :-1]], dim=1)))
        hidden = states[:, -1]
    return logits


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
