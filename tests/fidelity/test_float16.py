"""float16 against float32, for every family: the same network in both, on a CPU's own float16 arithmetic."""

from __future__ import annotations

import queue
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chatterbox_engine.assemble import BACKBONES, build
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.random_checkpoint import TINY
from chatterbox_engine.config import Config
from chatterbox_engine.errors import RequestError
from chatterbox_engine.kernels.processor import multiplies_float16
from chatterbox_engine.s3gen import S3Gen, VocoderJob
from chatterbox_engine.types import SamplingParams, SynthesisRequest, SynthesisResult
from tests.conftest import CheckpointOf
from tests.fidelity.s3gen_reference import random_tokens, start_drawn
from tests.fidelity.t3_loop import CPU, Request, relative_error, teacher_forced

State = dict[str, Tensor]
NAMES = [
    *TINY,
    *(pytest.param(name.replace("tiny", "full"), marks=pytest.mark.full) for name in TINY),
]
TO_THE_SUM = re.compile(r"(o_proj|down_proj|c_proj)\.weight$|(text_emb|speech_emb|wpe|pos_emb\.emb)\.weight$")
"""T3's weights that write to its residual sums."""
IN_S3GEN = re.compile(r"(linear_out|w_2|to_out\.0|ff\.net\.2|down_blocks\.0\.0\.res_conv|conv2)\.weight$")
"""S3Gen's. Of the linear skip connections the first: a factor of all multiplies up, to 10^14 at full size."""


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Checkpoint:
    return checkpoint_of(request.param)


def as_it_is(state: State) -> State:
    return state


def ten_times(state: State) -> State:
    """Residual sums of ten times the size."""
    pattern = TO_THE_SUM if "text_emb.weight" in state else IN_S3GEN
    return {name: 10 * tensor if pattern.search(name) else tensor for name, tensor in state.items()}


def beyond_float16(state: State) -> State:
    """Embeddings whose sum with a position is beyond float16's range, though each is within it."""
    tables = re.compile(r"(text_emb|speech_emb|wpe|pos_emb\.emb)\.weight$")
    generator = torch.Generator().manual_seed(0)
    return {
        name: 6e4 * (2 * torch.rand(tensor.shape, generator=generator) - 1) if tables.search(name) else tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("change", [as_it_is, ten_times, beyond_float16])
def test_logits_stay_near_float32s(checkpoint: Checkpoint, change: Callable[[State], State]) -> None:
    voice, dims, state = checkpoint.conditionals(), checkpoint.dims.t3, change(checkpoint.t3_state())
    assert voice is not None
    text = Request(40, SamplingParams(), seed=3, max_tokens=1).text()
    forced = torch.randint(0, 6561, (24,), generator=torch.Generator().manual_seed(2))
    backbone, logits = BACKBONES[type(dims)], []
    for dtype in (torch.float32, torch.float16):
        model = backbone.from_state_dict(state, dims, device=CPU, dtype=dtype)
        assert model.prompt(text).dtype == model.stream_dtype == torch.float32
        logits.append(teacher_forced(model, voice.t3, text, forced).float())
    exact, rounded = logits
    error = relative_error(rounded, exact)
    assert error < 2e-2, f"logits: {error:.2e}"


def beyond_float16_in_the_encoder(state: State) -> State:
    """What the encoder's second embedding norms is beyond float16's range, as it is in the demo voice."""
    large = re.compile(r"encoder\.up_layer\.conv\.(weight|bias)$")
    return {name: 1e5 * tensor if large.search(name) else tensor for name, tensor in state.items()}


@pytest.mark.parametrize("change", [as_it_is, ten_times, beyond_float16_in_the_encoder])
def test_a_mel_stays_near_float32s(checkpoint: Checkpoint, change: Callable[[State], State]) -> None:
    voice, dims = checkpoint.conditionals(), checkpoint.dims.s3gen
    assert voice is not None
    state, tokens = change(checkpoint.s3gen_state()), random_tokens(dims, 30)
    noise = start_drawn(3, 2 * (len(voice.s3gen.prompt_tokens) + len(tokens)), dims.mel)
    mels = []
    for dtype in (torch.float32, torch.float16):
        s3gen = S3Gen.from_state_dict(state, dims, device=CPU, dtype=dtype)
        mels.append(s3gen.mel([VocoderJob(tokens, s3gen.prepare(voice.s3gen), seed=0)], [noise])[0])
    exact, rounded = mels
    error = relative_error(rounded, exact)
    assert error < 2e-2, f"mel: {error:.2e}"


@pytest.mark.parametrize("name", ["tiny", "tiny-turbo", "tiny-flash"])
def test_an_engine_on_a_processor_that_multiplies_float16_speaks_in_it(checkpoint_of: CheckpointOf, name: str) -> None:
    said: list[str] = []
    folder = str(checkpoint_of(name).path)
    config = Config(checkpoint=folder, device="cpu", dtype="float16", watermark=False, preload_encoders=False)
    engine = build(config, report=said.append)
    engine.start()
    answers: queue.SimpleQueue[SynthesisResult | RequestError] = queue.SimpleQueue()
    request = SynthesisRequest(text="Hello there.", seed=1, sampling=engine.family.sampling, max_seconds=1.0)
    engine.submit(request, answers.put)
    result = answers.get(timeout=60)
    engine.close()
    assert isinstance(result, SynthesisResult)
    assert result.samples.any()
    told = set(result.stats["optimizations"])
    if multiplies_float16():
        assert told >= {"float16", "fused_projections"}
    assert ("this processor does not multiply float16: it takes what dtype=auto takes" in said) != multiplies_float16()
