"""Flash's T3 against upstream's own module and its own loop (chatterbox-flash 0.1.0), float32, random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chatterbox_engine.checkpoint import families
from chatterbox_engine.checkpoint.dims import FlashDims
from chatterbox_engine.kernels.draws import uniforms
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.block_runner import BlockRunner
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.flash import FlashT3
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.t3.sampling import guide
from chatterbox_engine.t3.schedule import MAX_STEPS
from chatterbox_engine.t3.unmasking import Choice, unmask
from chatterbox_engine.types import SamplingParams, T3Conditionals
from tests.conftest import CheckpointOf
from tests.fidelity import upstream
from tests.fidelity.t3_loop import relative_error

CPU = torch.device("cpu")
EXTENT = 512
EDGE = 1e-5


@dataclass
class Pair:
    """Our T3 and upstream's with the same weights, and a voice."""

    ours: FlashT3
    theirs: Any
    voice: T3Conditionals

    def condition(self, exaggeration: float) -> Any:
        from chatterbox.models.t3.modules.cond_enc import T3Cond

        return T3Cond(
            speaker_emb=self.voice.speaker[None],
            cond_prompt_speech_tokens=self.voice.prompt_tokens[None],
            emotion_adv=exaggeration * torch.ones(1, 1, 1),
        )


@pytest.fixture(scope="module", params=["tiny-flash", pytest.param("full-flash", marks=pytest.mark.full)])
def pair(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Pair:
    checkpoint = checkpoint_of(request.param)
    dims = checkpoint.dims.t3
    assert isinstance(dims, FlashDims)
    state = checkpoint.t3_state()
    ours = FlashT3.from_state_dict(state, dims, device=CPU, dtype=torch.float32)
    voice = checkpoint.conditionals()
    assert voice is not None
    return Pair(ours, upstream.flash_t3(dims, state), voice.t3)


@dataclass
class Record:
    """The passes of an utterance: guided logits, scores and the tokens after the pass."""

    max_tokens: int
    logits: list[Tensor] = field(default_factory=list)  # [block, vocab] each
    scores: list[Tensor] = field(default_factory=list)  # [block]
    drawn: list[Tensor] = field(default_factory=list)  # [block]
    tokens: list[list[int]] = field(default_factory=list)
    spoken: list[int] = field(default_factory=list)


class Observed(BlockRunner):
    """A runner of one utterance that keeps what its passes compute."""

    record: Record

    def _unmask(self, choice: Choice) -> Tensor:
        done = unmask(self._logits, self._prior, self.model.dims.mask, choice)
        rows = self._logits[choice.conditional], self._logits[choice.unconditional]
        conditional, unconditional = (row.float().log_softmax(dim=-1).flatten(1) for row in rows)
        guided = guide(conditional, unconditional, choice.cfg_weight).unflatten(1, (-1, self._logits.shape[-1]))
        self.record.logits.append(guided[0])
        self.record.drawn.append(done.drawn[0])
        self.record.scores.append(done.scores[0])
        self.record.tokens.append(done.tokens[0].tolist())
        return done.tokens


def ours(pair: Pair, text: Tensor, params: SamplingParams, seed: int, max_tokens: int) -> Record:
    """From a slot in the middle of a larger runner."""
    model = pair.ours
    cache = KVCache(model.dims, 6 * EXTENT, device=CPU, dtype=torch.float32)
    runner = Observed(model, cache, 3, graphs=Graphs(CPU, enabled=False))
    runner.record = Record(max_tokens)
    rows = (Extent(2 * EXTENT, EXTENT), Extent(EXTENT, EXTENT))[: 2 if params.cfg_weight else 1]
    prompt = Prompt(1, rows, text, params, torch.zeros(max_tokens + 1), seed=seed)
    assert runner.prefill([prompt], [model.prefix(pair.voice, params.exaggeration)]).read() == [[]]
    spoken = runner.record.spoken
    while len(spoken) < max_tokens and model.dims.stop_speech not in spoken:
        spoken += runner.decode([prompt]).read()[0]
    if model.dims.stop_speech in spoken:
        del spoken[spoken.index(model.dims.stop_speech) :]
    return runner.record


@dataclass
class Draws:
    """Our random numbers in the place of upstream's, at the pass of upstream that is under way."""

    seed: int
    block_size: int
    got: Record
    record: Record
    block: int = -1
    step: int = 0

    def numbers(self, count: int, kind: int) -> Tensor:
        index = self.block * MAX_STEPS + self.step
        return uniforms(torch.tensor(self.seed), (2 * index + kind) * self.block_size + torch.arange(count))

    def multinomial(self, probabilities: Tensor, num_samples: int) -> Tensor:
        """By the inverse of the distribution function. Where a number falls on the edge of two tokens, to rounding, the
        one that `got` has."""
        assert num_samples == 1
        mass = probabilities.cumsum(dim=-1)
        wanted = self.numbers(len(mass), 0)[:, None] * mass[:, -1:]
        token = torch.searchsorted(mass, wanted, right=True)
        other = self.got.drawn[len(self.record.tokens)][: len(mass), None]
        low, high = torch.minimum(token, other), torch.maximum(token, other) - 1
        on_edge = (mass.gather(1, low) - wanted).abs() + (mass.gather(1, high.clamp(min=0)) - wanted).abs() < EDGE
        return torch.where(on_edge, other, token)

    def rand_like(self, like: Tensor) -> Tensor:
        return self.numbers(len(like), 1)


def observe(monkeypatch: pytest.MonkeyPatch, draws: Draws, guided: bool) -> None:
    """Makes upstream's passes use these draws and write them down."""
    from chatterbox_flash import model as flash

    last: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        function = getattr(flash, name)

        def call(*args: Any, **options: Any) -> Any:
            last[name] = function(*args, **options)
            return last[name]

        monkeypatch.setattr(flash, name, call)

    for name in ("compute_pmi", "pmi_cfg_combine", "_gumbel_sample"):
        keep(name)
    step_of: Callable[..., dict[str, Any]] = flash._pmi_count_early_step_unmask

    def step(logits: Tensor, tokens: Tensor, **options: Any) -> dict[str, Any]:
        draws.block, draws.step = draws.block + (options["k"] == 0), options["k"]
        last.clear()
        result = step_of(logits, tokens, **options)
        score = last["pmi_cfg_combine" if guided else "compute_pmi"]
        draws.record.logits.append(logits if guided else logits.log_softmax(dim=-1))
        draws.record.scores.append(score + last.get("_gumbel_sample", torch.zeros(())))
        draws.record.tokens.append(result["xt_step"].tolist())
        return result

    monkeypatch.setattr(flash, "_pmi_count_early_step_unmask", step)
    monkeypatch.setattr(torch, "multinomial", draws.multinomial)
    monkeypatch.setattr(torch, "rand_like", draws.rand_like)


def theirs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, text: Tensor, params: SamplingParams, seed: int, got: Record
) -> Record:
    """Upstream's own `generate`, with our random numbers; as long as `got` may be."""
    record = Record(max_tokens=got.max_tokens)
    observe(monkeypatch, Draws(seed, pair.ours.dims.block, got, record), params.cfg_weight > 0)
    record.spoken += pair.theirs.generate(
        t3_cond=pair.condition(params.exaggeration),
        text_tokens=text[None],
        text_token_lens=torch.tensor([len(text)]),
        total_speech_len=got.max_tokens,
        num_steps=params.num_steps,
        temperature=params.temperature,
        time_shift_tau=params.time_shift_tau,
        omnivoice_schedule_t_shift=params.omnivoice_schedule_t_shift,
        cfg_scale=params.cfg_weight,
        position_temperature=params.position_temperature,
        backend="torch",
    )[0].tolist()
    return record


def text_of(length: int) -> Tensor:
    ids = torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(length))
    return torch.cat([torch.tensor([255]), ids, torch.tensor([0])])


def test_the_prior_is_upstreams(pair: Pair) -> None:
    pair.theirs.prime_uncond_block_prior(torch.float32, CPU)
    (expected,) = pair.theirs._uncond_block_prior_cache.values()
    assert relative_error(pair.ours.prior(), expected) < 1e-5


FLASH = families.FLASH.sampling
COMBINATIONS = [
    FLASH,
    replace(FLASH, exaggeration=0.0),
    replace(FLASH, exaggeration=1.3),
    replace(FLASH, cfg_weight=0.0),
    replace(FLASH, cfg_weight=0.3),
    replace(FLASH, cfg_weight=2.5),
    replace(FLASH, temperature=0.0),
    replace(FLASH, temperature=1.0),
    replace(FLASH, temperature=1.7),
    replace(FLASH, num_steps=1),
    replace(FLASH, num_steps=4),
    replace(FLASH, num_steps=16),
    replace(FLASH, time_shift_tau=0.0),
    replace(FLASH, time_shift_tau=0.7),
    replace(FLASH, time_shift_tau=3.0),
    replace(FLASH, omnivoice_schedule_t_shift=0.0),
    replace(FLASH, omnivoice_schedule_t_shift=1.0),
    replace(FLASH, omnivoice_schedule_t_shift=2.5),
    replace(FLASH, position_temperature=0.0),
    replace(FLASH, position_temperature=1.0, time_shift_tau=1.0, cfg_weight=0.0, temperature=1.2),
    replace(FLASH, position_temperature=0.0, time_shift_tau=0.5, temperature=0.0, num_steps=7),
    replace(FLASH, cfg_weight=0.0, temperature=0.0, time_shift_tau=0.0, position_temperature=0.0, exaggeration=0.8),
]


@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_passes_and_tokens_are_upstreams_given_the_same_random_numbers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    params, text = COMBINATIONS[number], text_of(10 + number)
    max_tokens = 88 - number
    got = ours(pair, text, params, number, max_tokens)
    expected = theirs(pair, monkeypatch, text, params, number, got)
    for index, tokens in enumerate(expected.tokens):
        length = len(tokens)
        error = relative_error(got.logits[index][:length], expected.logits[index])
        assert error < 1e-4, f"pass {index}: {error:.2e}"
        assert got.tokens[index][:length] == tokens, f"pass {index}"
        torch.testing.assert_close(got.scores[index][:length], expected.scores[index], rtol=1e-4, atol=1e-3)
    assert len(got.tokens) == len(expected.tokens)
    assert got.spoken == expected.spoken
