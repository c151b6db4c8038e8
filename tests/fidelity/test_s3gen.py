"""S3Gen against upstream's own modules, the same weights and noise in both."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.s3gen import S3Gen, VocoderJob
from chatterbox_engine.synthesis.windows import synthesise
from tests.fidelity.s3gen_reference import (
    TINY,
    build_upstream,
    random_conditionals,
    random_tokens,
    source_drawn,
    start_drawn,
    upstream_mel,
    upstream_wave,
)
from tests.fidelity.t3_loop import relative_error

CPU = torch.device("cpu")
FULL = S3GenDims()
MEANFLOW = dataclasses.replace(TINY, meanflow=True)
SIZES = [
    pytest.param(TINY, 10, id="tiny"),
    pytest.param(TINY, 3, id="three-steps"),
    pytest.param(MEANFLOW, 2, id="meanflow"),
    pytest.param(FULL, 10, id="full", marks=pytest.mark.full),
    pytest.param(dataclasses.replace(FULL, meanflow=True), 2, id="full-meanflow", marks=pytest.mark.full),
]
# upstream builds its attention from a class that diffusers means to drop
pytestmark = pytest.mark.filterwarnings("ignore:.*LoRACompatibleLinear:FutureWarning")


def mel_error(dims: S3GenDims, steps: int, prompt: int, count: int, dtype: torch.dtype) -> float:
    upstream = build_upstream(dims)
    s3gen = S3Gen.from_state_dict(upstream.state_dict(), dims, device=CPU, dtype=dtype, cfm_steps=steps)
    voice, tokens = random_conditionals(dims, prompt), random_tokens(dims, count)
    reference = upstream_mel(upstream, tokens, voice, steps, seed=3)
    noise = start_drawn(3, 2 * (prompt + count), dims.mel)
    mine = s3gen.mel([VocoderJob(tokens, s3gen.prepare(voice), seed=0)], [noise])[0]
    assert mine.shape == reference.shape == (2 * count, dims.mel)
    return relative_error(mine, reference)


@pytest.mark.parametrize(("dims", "steps"), SIZES)
def test_mel_equals_upstream_from_the_same_noise(dims: S3GenDims, steps: int) -> None:
    assert mel_error(dims, steps, prompt=40, count=30, dtype=torch.float32) < 1e-4


@pytest.mark.parametrize(("dims", "steps"), SIZES)
def test_mel_in_bfloat16_stays_close_to_upstream_in_float32(dims: S3GenDims, steps: int) -> None:
    assert mel_error(dims, steps, prompt=40, count=30, dtype=torch.bfloat16) < 2e-2


def test_mel_of_one_token_equals_upstream() -> None:
    assert mel_error(TINY, 10, prompt=3, count=1, dtype=torch.float32) < 1e-4


@pytest.mark.parametrize("dims", [TINY, pytest.param(FULL, marks=pytest.mark.full)], ids=["tiny", "full"])
@pytest.mark.parametrize("frames", [2, 150])
def test_waveform_equals_upstream_with_the_same_source_noise(dims: S3GenDims, frames: int) -> None:
    upstream = build_upstream(dims)
    s3gen = S3Gen.from_state_dict(upstream.state_dict(), dims, device=CPU)
    mel = torch.randn(frames, dims.mel, generator=torch.Generator().manual_seed(1))
    reference = upstream_wave(upstream, mel, seed=5)
    mine = s3gen.vocode(mel[None], [frames], source_drawn(upstream, 5, frames))[0]
    assert mine.shape == reference.shape == (480 * frames,)
    assert relative_error(mine, reference) < 1e-3
    assert 0.01 < float(reference.std()) < 0.9


def test_the_reference_voice_has_voiced_and_unvoiced_frames() -> None:
    upstream = build_upstream(TINY)
    mel = torch.randn(1, TINY.mel, 150, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        voiced = upstream.mel2wav.f0_predictor(mel) > 10.0
    assert 5 < int(voiced.sum()) < 145


def test_the_first_forty_milliseconds_are_muted_and_faded_in_as_upstream_does() -> None:
    upstream = build_upstream(TINY)
    s3gen = S3Gen.from_state_dict(upstream.state_dict(), TINY, device=CPU)
    job = VocoderJob(random_tokens(TINY, 4), s3gen.prepare(random_conditionals(TINY, 5)), seed=9)
    ramp = (torch.cos(torch.linspace(torch.pi, 0, 480)) + 1) / 2
    samples = synthesise(s3gen, [job])[0]
    assert samples.shape == (4 * 960,)
    assert not samples[:480].any()
    assert samples[480:960].abs().max() > 0
    loud = synthesise(s3gen, [job])[0][480:960] / ramp.clamp(min=1e-3)
    assert loud.abs().max() <= 0.99 + 1e-6
