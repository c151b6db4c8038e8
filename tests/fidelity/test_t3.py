"""T3 against upstream's own module and its own generation loop, float32, random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.dims import LlamaDims
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.attention import Context
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.llama import T3
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.types import Conditionals, SamplingParams, T3Conditionals
from tests.conftest import CheckpointOf
from tests.fidelity import upstream
from tests.fidelity.t3_loop import Loop, Request, relative_error, teacher_forced

CPU = torch.device("cpu")
EXTENT = 512


@dataclass
class Pair:
    """Our T3 and upstream's with the same weights and voice."""

    ours: T3
    theirs: Any
    voice: Conditionals
    state: dict[str, Tensor]

    def condition(self, exaggeration: float) -> Any:
        from chatterbox.models.t3.modules.cond_enc import T3Cond

        return T3Cond(
            speaker_emb=self.voice.t3.speaker[None],
            cond_prompt_speech_tokens=self.voice.t3.prompt_tokens[None],
            emotion_adv=exaggeration * torch.ones(1, 1, 1),
        )


@pytest.fixture(
    scope="module",
    params=[
        "tiny",
        "tiny-multilingual",
        pytest.param("full", marks=pytest.mark.full),
        pytest.param("full-multilingual", marks=pytest.mark.full),
    ],
)
def pair(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Pair:
    checkpoint = checkpoint_of(request.param)
    voice = checkpoint.conditionals()
    assert voice is not None
    dims = checkpoint.dims.t3
    ours = T3.from_state_dict(checkpoint.t3_state(), dims, device=CPU, dtype=torch.float32)
    return Pair(ours, upstream.t3(dims, checkpoint.t3_state()), voice, checkpoint.t3_state())


def text_of(length: int) -> Tensor:
    ids = torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(length))
    return torch.cat([torch.tensor([255]), ids, torch.tensor([0])])


@torch.inference_mode()
def test_prefill_and_64_teacher_forced_steps_give_upstreams_logits(pair: Pair) -> None:
    text = text_of(30)
    forced = torch.randint(0, 6561, (64,), generator=torch.Generator().manual_seed(1))
    theirs = pair.theirs
    stacked = torch.stack([text, text])
    start = torch.full((2, 1), theirs.hp.start_speech_token)
    embeds, _ = theirs.prepare_input_embeds(
        t3_cond=pair.condition(0.7), text_tokens=stacked, speech_tokens=start, cfg_weight=0.5
    )
    bos = theirs.speech_emb(start) + theirs.speech_pos_emb.get_fixed_embedding(0)
    out = theirs.tfmr(inputs_embeds=torch.cat([embeds, bos], dim=1), use_cache=True)
    expected = [theirs.speech_head(out.last_hidden_state[:, -1])]
    for step, token in enumerate(forced):
        embed = theirs.speech_emb(token[None, None]) + theirs.speech_pos_emb.get_fixed_embedding(step + 1)
        out = theirs.tfmr(inputs_embeds=embed.expand(2, -1, -1), past_key_values=out.past_key_values, use_cache=True)
        expected.append(theirs.speech_head(out.last_hidden_state[:, -1]))

    got = teacher_forced(pair.ours, pair.voice.t3, text, forced, exaggeration=0.7)
    errors = [relative_error(ours, theirs) for ours, theirs in zip(got, expected, strict=True)]
    assert max(errors) < 1e-4, f"worst step {max(range(65), key=errors.__getitem__)}: {max(errors):.2e}"


def our_tokens(pair: Pair, text: Tensor, params: SamplingParams, uniforms: Tensor) -> list[int]:
    """Tokens up to and without the stop token, from a slot in the middle of a larger runner."""
    model = pair.ours
    cache = KVCache(model.dims, 6 * EXTENT, device=CPU, dtype=torch.float32)
    runner = Runner(model, cache, 3, graphs=Graphs(CPU, enabled=False))
    rows = (Extent(2 * EXTENT, EXTENT), Extent(EXTENT, EXTENT))[: 2 if params.cfg_weight else 1]
    prompt = Prompt(1, rows, text, params, uniforms)
    tokens = runner.prefill([prompt], [model.prefix(pair.voice.t3, params.exaggeration)]).read()[0]
    while tokens[-1] != model.dims.stop_speech and len(tokens) < len(uniforms) - 1:
        tokens += runner.decode([prompt]).read()[0]
    return tokens[:-1] if tokens[-1] == model.dims.stop_speech else tokens


def upstream_tokens(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, text: Tensor, params: SamplingParams, uniforms: Tensor | None
) -> list[int]:
    """Upstream's own `T3.inference`, with its draw replaced by inverse transform sampling (None: by the most likely
    token)."""
    numbers = iter(uniforms) if uniforms is not None else None

    def pick(probabilities: Tensor, num_samples: int) -> Tensor:
        assert num_samples == 1
        if numbers is None:
            return probabilities.argmax(dim=-1, keepdim=True)
        mass = probabilities.cumsum(dim=-1)
        return torch.searchsorted(mass, (next(numbers) * mass[:, -1]).view(1, 1), right=True)

    monkeypatch.setattr(torch, "multinomial", pick)
    steps = len(uniforms) - 1 if uniforms is not None else 60
    tokens = pair.theirs.inference(
        t3_cond=pair.condition(params.exaggeration),
        text_tokens=torch.stack([text, text]),
        max_new_tokens=steps,
        temperature=params.temperature or 1.0,
        cfg_weight=params.cfg_weight,
        repetition_penalty=params.repetition_penalty,
        min_p=params.min_p,
        top_p=params.top_p,
    )[0].tolist()
    return tokens[:-1] if tokens[-1] == pair.ours.dims.stop_speech else tokens


def test_greedy_tokens_are_upstreams(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(24)
    params = SamplingParams(temperature=0.0)
    ours = our_tokens(pair, text, params, torch.zeros(61))
    assert ours == upstream_tokens(pair, monkeypatch, text, params, None)
    assert len(ours) > 1


class NoPositions(T3):
    """Speech without its position embeddings."""

    def decode(self, token: Tensor, speech_position: Tensor, start: Tensor, position: Tensor, cache: KVCache) -> Tensor:
        return super().decode(token, torch.zeros_like(speech_position), start, position, cache)


class LatePositions(T3):
    """Every token one position too late in the sequence of RoPE and in the cache."""

    def decode(self, token: Tensor, speech_position: Tensor, start: Tensor, position: Tensor, cache: KVCache) -> Tensor:
        return super().decode(token, speech_position, start, position + 1, cache)


class OneBosDims(LlamaDims):
    bos = 1


class OneBos(T3):
    """A prompt with one BOS instead of two."""

    def __init__(self, dims: LlamaDims) -> None:
        super().__init__(OneBosDims(**vars(dims)))

    def prompt(self, text: Tensor) -> Tensor:
        return super().prompt(text)[:, :-1]


class LatePrompt(T3):
    """Text and BOS one position too far after the prefix."""

    def prefill(self, x: Tensor, context: Context, cache: KVCache) -> Tensor:
        return super().prefill(x, replace(context, position=context.position + 1), cache)


class ForgottenVoice(T3):
    """Text and BOS after an empty prefix."""

    def prefix(self, voice: T3Conditionals, exaggeration: float) -> Tensor:
        return torch.zeros_like(super().prefix(voice, exaggeration))


@pytest.mark.parametrize(
    ("mutant", "cfg_weight"),
    [
        pytest.param(NoPositions, 0.5, id="no-positions"),
        pytest.param(LatePositions, 0.5, id="late-positions"),
        pytest.param(OneBos, 0.5, id="one-bos"),
        pytest.param(LatePrompt, 0.5, id="late-prompt"),
        pytest.param(ForgottenVoice, 0.5, id="forgotten-voice"),
        pytest.param(T3, -0.5, id="guidance-of-the-wrong-sign"),
    ],
)
def test_what_would_be_heard_as_wrong_words_gives_other_tokens_than_upstreams(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, mutant: type[T3], cfg_weight: float
) -> None:
    """Shows that the test above can fail."""
    voice = tiny.conditionals()
    assert voice is not None
    state, dims, text = tiny.t3_state(), tiny.dims.t3, text_of(24)
    wrong = mutant.from_state_dict(state, dims, device=CPU, dtype=torch.float32)
    pair = Pair(wrong, upstream.t3(dims, state), voice, state)
    expected = upstream_tokens(pair, monkeypatch, text, SamplingParams(temperature=0.0), None)
    assert our_tokens(pair, text, SamplingParams(temperature=0.0, cfg_weight=cfg_weight), torch.zeros(61)) != expected


COMBINATIONS = [
    SamplingParams(),
    SamplingParams(exaggeration=0.0),
    SamplingParams(exaggeration=1.3),
    SamplingParams(cfg_weight=0.2),
    SamplingParams(cfg_weight=1.0),
    SamplingParams(cfg_weight=2.5),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.7),
    SamplingParams(min_p=0.0),
    SamplingParams(min_p=0.3),
    SamplingParams(min_p=1.0),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.5),
    SamplingParams(top_p=0.05),
    SamplingParams(repetition_penalty=1.0),
    SamplingParams(repetition_penalty=2.0),
    SamplingParams(repetition_penalty=0.7),
    SamplingParams(top_p=0.8, min_p=0.0, temperature=1.2),
    SamplingParams(top_p=0.95, min_p=0.1, temperature=0.6, repetition_penalty=1.5, cfg_weight=0.7, exaggeration=0.9),
    SamplingParams(top_p=0.99, min_p=0.02, temperature=2.0, repetition_penalty=1.1, cfg_weight=0.3, exaggeration=0.35),
]


@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_drawn_tokens_are_upstreams_given_the_same_uniform_numbers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    params = COMBINATIONS[number]
    uniforms = torch.rand(41, generator=torch.Generator().manual_seed(number))
    text = text_of(10 + number)
    assert our_tokens(pair, text, params, uniforms) == upstream_tokens(pair, monkeypatch, text, params, uniforms)


@pytest.mark.parametrize(("positions", "planned"), [(600, 250), pytest.param(3000, 1200, marks=pytest.mark.full)])
def test_a_request_longer_than_the_cache_was_planned_for_gives_upstreams_tokens(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, positions: int, planned: int
) -> None:
    state = dict(tiny.t3_state())
    head = state["speech_head.weight"].clone()
    head[tiny.dims.t3.stop_speech] = -head.abs().amax(dim=0)  # so that it never draws the stop token
    state["speech_head.weight"] = head
    voice = tiny.conditionals()
    assert voice is not None
    model = T3.from_state_dict(state, tiny.dims.t3, device=CPU, dtype=torch.float32)
    pair = Pair(model, upstream.t3(tiny.dims.t3, state), voice, state)

    request = Request(text_length=60, sampling=SamplingParams(), seed=1, max_tokens=positions - 34 - 62 - 2)
    uniforms = torch.rand(request.max_tokens + 1, generator=torch.Generator().manual_seed(request.seed))
    Loop(model, voice.t3, slots=6, cache_len=planned).run([request])
    assert (request.ending, len(request.tokens)) == ("length", request.max_tokens)
    assert request.tokens == upstream_tokens(pair, monkeypatch, request.text(), request.sampling, uniforms)


def test_without_guidance_one_row_gives_the_conditional_tokens(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # Upstream crashes at cfg_weight=0, so the reference is guidance of vanishing weight.
    uniforms = torch.rand(41, generator=torch.Generator().manual_seed(5))
    text = text_of(20)
    ours = our_tokens(pair, text, SamplingParams(cfg_weight=0.0), uniforms)
    assert ours == upstream_tokens(pair, monkeypatch, text, SamplingParams(cfg_weight=1e-9), uniforms)


@torch.inference_mode()
def test_bfloat16_logits_stay_near_float32(pair: Pair) -> None:
    half = T3.from_state_dict(pair.state, pair.ours.dims, device=CPU, dtype=torch.bfloat16)
    text = text_of(40)
    forced = torch.randint(0, 6561, (24,), generator=torch.Generator().manual_seed(2))
    exact, rounded = (teacher_forced(model, pair.voice.t3, text, forced) for model in (pair.ours, half))
    error = relative_error(rounded.float(), exact)
    assert error < 2e-2, f"{error:.2e}"
