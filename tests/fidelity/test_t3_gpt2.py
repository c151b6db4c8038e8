"""T3 with its GPT-2 backbone (Turbo, Nano) against upstream's own module and `inference_turbo`, float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chatterbox_engine.checkpoint.families import TURBO
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.gpt2 import GPT2
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.types import Conditionals, SamplingParams
from tests.conftest import CheckpointOf
from tests.fidelity import upstream
from tests.fidelity.t3_loop import relative_error, teacher_forced

CPU = torch.device("cpu")
EXTENT = 640


@dataclass
class Pair:
    """Our T3 and upstream's with the same weights and voice."""

    ours: GPT2
    theirs: Any
    voice: Conditionals
    state: dict[str, Tensor]

    def condition(self) -> Any:
        from chatterbox.models.t3.modules.cond_enc import T3Cond

        return T3Cond(
            speaker_emb=self.voice.t3.speaker[None], cond_prompt_speech_tokens=self.voice.t3.prompt_tokens[None]
        )


@pytest.fixture(
    scope="module",
    params=[
        "tiny-turbo",
        "tiny-nano",
        pytest.param("full-turbo", marks=pytest.mark.full),
        pytest.param("full-nano", marks=pytest.mark.full),
    ],
)
def pair(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Pair:
    checkpoint = checkpoint_of(request.param)
    voice, dims, state = checkpoint.conditionals(), checkpoint.dims.t3, checkpoint.t3_state()
    assert voice is not None
    ours = GPT2.from_state_dict(state, dims, device=CPU, dtype=torch.float32)
    return Pair(ours, upstream.t3(dims, state), voice, state)


def text_of(length: int) -> Tensor:
    return torch.randint(3, 1000, (length,), generator=torch.Generator().manual_seed(length))


@torch.inference_mode()
def test_prefill_and_64_teacher_forced_steps_give_upstreams_logits(pair: Pair) -> None:
    text, forced = text_of(30), torch.randint(0, 6561, (64,), generator=torch.Generator().manual_seed(1))
    theirs = pair.theirs
    start = torch.full((1, 1), theirs.hp.start_speech_token)
    embeds, _ = theirs.prepare_input_embeds(t3_cond=pair.condition(), text_tokens=text[None], speech_tokens=start)
    out = theirs.tfmr(inputs_embeds=embeds, use_cache=True)
    expected = [theirs.speech_head(out[0][:, -1])]
    for token in forced:
        embed = theirs.speech_emb(token[None, None])
        out = theirs.tfmr(inputs_embeds=embed, past_key_values=out.past_key_values, use_cache=True)
        expected.append(theirs.speech_head(out[0][:, -1]))

    got = teacher_forced(pair.ours, pair.voice.t3, text, forced)
    errors = [relative_error(ours, theirs) for ours, theirs in zip(got, expected, strict=True)]
    assert max(errors) < 1e-4, f"worst step {max(range(65), key=errors.__getitem__)}: {max(errors):.2e}"


def our_tokens(pair: Pair, text: Tensor, params: SamplingParams, uniforms: Tensor) -> list[int]:
    """Tokens up to and without the stop token, from a slot in the middle of a larger runner."""
    model = pair.ours
    cache = KVCache(model.dims, 3 * EXTENT, device=CPU, dtype=torch.float32)
    runner = Runner(model, cache, 3, family=TURBO, graphs=Graphs(CPU, enabled=False))
    prompt = Prompt(1, (Extent(EXTENT, EXTENT),), text, params, uniforms)
    tokens = runner.prefill([prompt], [model.prefix(pair.voice.t3, 0.0)]).read()[0]
    while tokens[-1] != model.dims.stop_speech and len(tokens) < len(uniforms) - 1:
        tokens += runner.decode([prompt]).read()[0]
    return tokens[:-1] if tokens[-1] == model.dims.stop_speech else tokens


def upstream_tokens(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, text: Tensor, params: SamplingParams, uniforms: Tensor | None
) -> list[int]:
    """Upstream's own `T3.inference_turbo`, its draw replaced by the inverse distribution function (None: by the
    best)."""
    numbers = iter(uniforms) if uniforms is not None else None

    def pick(probabilities: Tensor, num_samples: int) -> Tensor:
        assert num_samples == 1
        if numbers is None:
            return probabilities.argmax(dim=-1, keepdim=True)
        mass = probabilities.cumsum(dim=-1)
        return torch.searchsorted(mass, (next(numbers) * mass[:, -1]).view(1, 1), right=True)

    monkeypatch.setattr(torch, "multinomial", pick)
    steps = len(uniforms) - 1 if uniforms is not None else 60
    tokens: list[int] = pair.theirs.inference_turbo(
        t3_cond=pair.condition(),
        text_tokens=text[None],
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        repetition_penalty=params.repetition_penalty,
        max_gen_len=steps - 1,  # beside the first
    )[0].tolist()
    return tokens


def test_greedy_tokens_are_upstreams(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(24)
    params = replace(TURBO.sampling, temperature=0.0)
    ours = our_tokens(pair, text, params, torch.zeros(61))
    assert ours == upstream_tokens(pair, monkeypatch, text, params, None)
    assert len(ours) > 1


COMBINATIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.0},
    {"temperature": 1.7},
    {"top_k": 0},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 6563},
    {"top_p": 1.0},
    {"top_p": 1.0, "top_k": 0},
    {"top_p": 0.5},
    {"top_p": 0.05},
    {"repetition_penalty": 1.0},
    {"repetition_penalty": 2.0},
    {"repetition_penalty": 0.7},
    {"temperature": 2.0, "top_k": 200, "top_p": 0.99, "repetition_penalty": 1.5},
]


@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_drawn_tokens_are_upstreams_given_the_same_uniform_numbers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    params = replace(TURBO.sampling, **COMBINATIONS[number])
    uniforms = torch.rand(41, generator=torch.Generator().manual_seed(number))
    text = text_of(10 + number)
    assert our_tokens(pair, text, params, uniforms) == upstream_tokens(pair, monkeypatch, text, params, uniforms)


def test_the_penalty_counts_bos_at_the_first_token_only(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    state = dict(pair.state)
    bias = state["speech_head.bias"].clone()
    bias[pair.ours.dims.start_speech] += 120.0  # so that BOS is drawn whenever nothing holds it down
    state["speech_head.bias"] = bias
    ours = GPT2.from_state_dict(state, pair.ours.dims, device=CPU, dtype=torch.float32)
    eager = Pair(ours, upstream.t3(pair.ours.dims, state), pair.voice, state)
    params = replace(TURBO.sampling, repetition_penalty=10.0)
    uniforms = torch.rand(13, generator=torch.Generator().manual_seed(3))
    tokens = our_tokens(eager, text_of(12), params, uniforms)
    assert tokens == upstream_tokens(eager, monkeypatch, text_of(12), params, uniforms)
    assert pair.ours.dims.start_speech in tokens


def test_a_voice_of_a_short_clip_has_a_shorter_prefix(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(pair.voice, t3=replace(pair.voice.t3, prompt_tokens=pair.voice.t3.prompt_tokens[:130]))
    shorter = replace(pair, voice=short)
    uniforms = torch.rand(21, generator=torch.Generator().manual_seed(4))
    ours = our_tokens(shorter, text_of(9), TURBO.sampling, uniforms)
    assert ours == upstream_tokens(shorter, monkeypatch, text_of(9), TURBO.sampling, uniforms)


@torch.inference_mode()
def test_bfloat16_logits_stay_near_float32(pair: Pair) -> None:
    half = GPT2.from_state_dict(pair.state, pair.ours.dims, device=CPU, dtype=torch.bfloat16)
    text, forced = text_of(40), torch.randint(0, 6561, (24,), generator=torch.Generator().manual_seed(2))
    exact, rounded = (teacher_forced(model, pair.voice.t3, text, forced) for model in (pair.ours, half))
    error = relative_error(rounded.float(), exact)
    assert error < 2e-2, f"{error:.2e}"
