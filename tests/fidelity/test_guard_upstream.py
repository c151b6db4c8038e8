"""The guard `upstream` against the analyser of chatterbox-tts 0.1.7 in its own generation loop, token by token.

Texts have six tokens or more, start and stop included: with fewer the analyser raises IndexError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.synthesis.analyser import Analyser
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.runner import Prompt, Runner
from chatterbox_engine.types import Head, SamplingParams
from tests.conftest import CheckpointOf
from tests.fidelity import upstream
from tests.fidelity.t3_loop import CPU, Served

EXTENT, STEPS = 512, 120
HEADS: list[list[Head]] = [[(0, 1), (1, 0)], [(1, 1)]]


class Both:
    """Our runner and upstream's T3 with the same weights, voice and uniform numbers."""

    def __init__(self, checkpoint_of: CheckpointOf, heads: list[Head]) -> None:
        checkpoint = checkpoint_of("tiny-multilingual")
        self.served = Served.of(checkpoint)
        self.theirs: Any = upstream.t3(checkpoint.dims.t3, checkpoint.t3_state())
        self.theirs.hp.is_multilingual = True  # by which upstream chooses its analyser
        model = self.served.model
        cache = KVCache(model.dims, 2 * EXTENT, device=CPU, dtype=torch.float32)
        self.runner = Runner(model, cache, 1, graphs=Graphs(CPU, enabled=False), heads=heads)

    def ours(self, text: Tensor, sampling: SamplingParams, uniforms: Tensor, *, guarded: bool = True) -> list[int]:
        stop = self.served.model.dims.stop_speech
        rows = (Extent(0, EXTENT), Extent(EXTENT, EXTENT))
        prompt = Prompt(0, rows, text, sampling, uniforms, aligned=True, holding=guarded)
        analyser, tokens, reading = Analyser(len(text)), list[int](), None
        drawn = self.runner.prefill([prompt], [self.served.model.prefix(self.served.voice, 0.5)])
        while len(tokens) < STEPS:
            ((token,),) = drawn.read()
            if token == stop or (analyser.ends(token, reading) and guarded):
                break
            tokens.append(token)
            drawn = self.runner.decode([prompt])
            (reading,) = drawn.readings()
        return tokens

    def upstreams(self, text: Tensor, sampling: SamplingParams) -> list[int]:
        from chatterbox.models.t3.modules.cond_enc import T3Cond

        condition = T3Cond(
            speaker_emb=self.served.voice.speaker[None],
            cond_prompt_speech_tokens=self.served.voice.prompt_tokens[None],
            emotion_adv=0.5 * torch.ones(1, 1, 1),
        )
        tokens: list[int] = self.theirs.inference(
            t3_cond=condition,
            text_tokens=torch.stack([text, text]),
            max_new_tokens=STEPS,
            temperature=sampling.temperature,
            cfg_weight=sampling.cfg_weight,
            repetition_penalty=sampling.repetition_penalty,
            min_p=sampling.min_p,
            top_p=sampling.top_p,
        )[0].tolist()
        return tokens[:-1] if tokens[-1] == self.served.model.dims.stop_speech else tokens


@pytest.fixture(params=HEADS, ids=str)
def both(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf, monkeypatch: pytest.MonkeyPatch) -> Both:
    from chatterbox.models.t3.inference import alignment_stream_analyzer

    monkeypatch.setattr(alignment_stream_analyzer, "LLAMA_ALIGNED_HEADS", request.param)
    return Both(checkpoint_of, request.param)


def test_the_tokens_are_upstreams(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = 0
    for seed, (length, temperature, penalty) in enumerate(
        [(4, 0.8, 1.2), (6, 0.8, 1.2), (9, 1.3, 1.0), (20, 0.8, 1.0), (30, 2.0, 2.0), (40, 0.6, 1.2), (5, 0.3, 1.0)]
    ):
        generator = torch.Generator().manual_seed(seed)
        inner = torch.randint(3, 200, (length,), generator=generator)
        text = torch.cat([torch.tensor([255]), inner, torch.tensor([0])])
        uniforms = torch.rand(STEPS + 1, generator=generator)
        sampling = SamplingParams(temperature=temperature, repetition_penalty=penalty)
        numbers = iter(uniforms)

        def pick(probabilities: Tensor, num_samples: int, numbers: Iterator[Tensor] = numbers) -> Tensor:
            mass = probabilities.cumsum(dim=-1)
            return torch.searchsorted(mass, (next(numbers) * mass[:, -1]).view(1, 1), right=True)

        monkeypatch.setattr(torch, "multinomial", pick)
        ours = both.ours(text, sampling, uniforms)
        assert ours == both.upstreams(text, sampling), (length, temperature)
        changed += ours != both.ours(text, sampling, uniforms, guarded=False)
    assert changed > 2, "the analyser changes some"
