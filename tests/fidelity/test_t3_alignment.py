"""Where T3 looks in the text, as the runner reads it, against the attention of upstream's module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.types import Reading
from tests.conftest import CheckpointOf
from tests.fidelity import upstream
from tests.fidelity.alignment_reference import largest_difference, reading
from tests.fidelity.t3_loop import CPU, Served
from tests.unit.static import PretendGraphs

EXTENT = 512
STEPS = 12


class Case:
    """A checkpoint's T3, with a runner that reads its heads."""

    def __init__(self, checkpoint: Checkpoint, graphs: Graphs | None = None) -> None:
        self.checkpoint, self.served = checkpoint, Served.of(checkpoint)
        self.heads = checkpoint.dims.alignment_heads
        model = self.served.model
        cache = KVCache(model.dims, 8 * EXTENT, device=CPU, dtype=torch.float32)
        self.runner = Runner(
            model,
            cache,
            4,
            family=self.served.family,
            graphs=graphs or Graphs(CPU, enabled=False),
            heads=self.heads,
        )

    def prompt(self, slot: int, length: int, *, aligned: bool = True, cfg_weight: float = 0.5) -> Prompt:
        family, dims = self.served.family, self.served.model.dims
        text = torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        sampling = replace(family.sampling, cfg_weight=cfg_weight if family.guided else 0.0)
        rows = 2 if sampling.cfg_weight else 1
        extents = tuple(Extent(EXTENT * (2 * slot + row), EXTENT) for row in range(rows))
        uniforms = torch.rand(40, generator=torch.Generator().manual_seed(slot))
        return Prompt(slot, extents, torch.tensor(dims.frame(text)), sampling, uniforms, aligned=aligned)

    def speak(self, prompts: list[Prompt]) -> tuple[list[list[int]], list[list[Reading]]]:
        """Tokens of each prompt, and what was read of each decode step."""
        prefixes = [self.served.model.prefix(self.served.voice, 0.5) for _ in prompts]
        tokens = self.runner.prefill(prompts, prefixes).read()
        readings: list[list[Reading]] = [[] for _ in prompts]
        for _ in range(STEPS):
            drawn = self.runner.decode(prompts)
            for own, (token,) in zip(tokens, drawn.read(), strict=True):
                own.append(token)
            for own_readings, one in zip(readings, drawn.readings(), strict=False):
                own_readings.append(one)
        return tokens, readings

    def exact(self, prompt: Prompt, tokens: list[int]) -> list[Reading]:
        """From upstream's attention over the whole sequence."""
        attentions = self._attentions(prompt, tokens)
        past = attentions[0].shape[1] - len(prompt.text) - len(tokens) + 1 - self.served.model.dims.bos
        mean = torch.stack([attentions[layer][head] for layer, head in self.heads]).mean(0)
        own = mean[:, past : past + len(prompt.text)]
        return [reading(own[step - STEPS], step + 1) for step in range(STEPS)]

    def _attentions(self, prompt: Prompt, tokens: list[int]) -> list[Tensor]:
        """Of each layer, the conditional row's [heads, positions, positions]."""
        from chatterbox.models.t3.modules.cond_enc import T3Cond

        voice = self.served.voice
        theirs: Any = upstream.t3(self.checkpoint.dims.t3, self.checkpoint.t3_state())
        theirs.tfmr.config._attn_implementation = "eager"
        condition = T3Cond(
            speaker_emb=voice.speaker[None],
            cond_prompt_speech_tokens=voice.prompt_tokens[None],
            emotion_adv=0.5 * torch.ones(1, 1, 1),
        )
        bos = torch.tensor([[theirs.hp.start_speech_token]])
        embeds, _ = theirs.prepare_input_embeds(
            t3_cond=condition, text_tokens=prompt.text[None], speech_tokens=bos, cfg_weight=0.0
        )
        spoken = theirs.speech_emb(torch.tensor([tokens[:-1]]))
        if self.served.family.guided:
            again = theirs.speech_emb(bos) + theirs.speech_pos_emb.get_fixed_embedding(0)
            places = [theirs.speech_pos_emb.get_fixed_embedding(step + 1) for step in range(len(tokens) - 1)]
            spoken = torch.cat([again, spoken + torch.cat(places, dim=1)], dim=1)
        with torch.inference_mode():
            out = theirs.tfmr(inputs_embeds=torch.cat([embeds, spoken], dim=1), output_attentions=True)
        return [layer[0] for layer in out.attentions]


@pytest.fixture(params=["tiny", "tiny-turbo"])
def case(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Case:
    return Case(checkpoint_of(request.param))


def test_what_is_read_is_upstreams_attention(case: Case) -> None:
    prompts = [case.prompt(0, 30), case.prompt(2, 4, cfg_weight=0.0), case.prompt(1, 90)]
    tokens, readings = case.speak(prompts)
    for prompt, own, got in zip(prompts, tokens, readings, strict=True):
        assert len(got) == STEPS
        for ours, exact in zip(got, case.exact(prompt, own), strict=True):
            assert largest_difference(ours, exact) < 2e-4, (ours, exact)


def test_what_is_read_depends_on_no_other_row_and_changes_no_token(case: Case) -> None:
    prompts = [case.prompt(0, 30), case.prompt(2, 4, aligned=False), case.prompt(1, 90)]
    together = case.speak(prompts)
    alone = [case.speak([prompt]) for prompt in prompts]
    assert together[0] == [tokens[0] for tokens, _ in alone]
    assert together[1][0] == alone[0][1][0]
    assert together[1][2] == alone[2][1][0]
    unread = case.speak([replace(prompt, aligned=False) for prompt in prompts])
    assert unread == (together[0], [[], [], []])


def test_padded_buckets_over_static_buffers_change_nothing_that_is_read(
    case: Case, checkpoint_of: CheckpointOf
) -> None:
    padded = Case(case.checkpoint, PretendGraphs())
    padded.runner.warm_up(lambda _line: None)
    prompts = [case.prompt(0, 30), case.prompt(2, 4), case.prompt(1, 90)]
    tokens, readings = case.speak(prompts)
    got_tokens, got = padded.speak(prompts)
    assert got_tokens == tokens
    for padded_steps, steps in zip(got, readings, strict=True):
        assert max(map(largest_difference, padded_steps, steps)) < 1e-4


def test_a_held_stop_token_is_drawn_only_near_the_texts_end(checkpoint_of: CheckpointOf) -> None:
    case = Case(checkpoint_of("tiny"))
    stop = case.served.model.dims.stop_speech
    logits = case.runner._logits

    def greedy_stop(prompt: Prompt) -> list[bool]:
        """Whether the stop token could be drawn in each step."""
        prefixes = [case.served.model.prefix(case.served.voice, 0.5)]
        case.runner.prefill([prompt], prefixes)
        free = [bool(logits[0, stop] > -1000)]
        for _ in range(STEPS):
            reading = case.runner.decode([prompt]).readings()[0]
            free.append(bool(logits[0, stop] > -1000))
            assert free[-1] == (not prompt.holding or len(prompt.text) <= 5 or reading.strict >= len(prompt.text) - 3)
        return free

    free = greedy_stop(replace(case.prompt(0, 5), holding=True))
    assert not free[0]
    assert True in free
    assert all(greedy_stop(replace(case.prompt(0, 3), holding=True)))
    assert all(greedy_stop(case.prompt(0, 5)))
