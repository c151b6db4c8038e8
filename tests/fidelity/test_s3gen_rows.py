"""Any row of any batch equals the same row alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.s3gen import PreparedVoice, S3Gen, VocoderJob
from chatterbox_engine.synthesis.windows import synthesise
from tests.fidelity.s3gen_reference import TINY, build_upstream, random_conditionals, random_tokens

PROMPTS = (1, 9, 30)
LENGTHS = (1, 2, 7, 13, 24, 39, 40)
"""Tokens of the rows. Few, because every new size of a batch costs oneDNN's programs."""
ROWS = st.tuples(st.sampled_from(LENGTHS), st.sampled_from(range(len(PROMPTS))), st.integers(-(2**63), 2**63 - 1))
# upstream builds its attention from a class that diffusers means to drop
pytestmark = pytest.mark.filterwarnings("ignore:.*LoRACompatibleLinear:FutureWarning")


def load(dims: S3GenDims) -> S3Gen:
    """Upstream's random weights, in batches as on a GPU."""
    s3gen = S3Gen.from_state_dict(build_upstream(dims).state_dict(), dims, device=torch.device("cpu"))
    s3gen.batching.together = True
    return s3gen


@pytest.fixture(scope="module")
def s3gen() -> S3Gen:
    return load(TINY)


@pytest.fixture(scope="module")
def voices(s3gen: S3Gen) -> list[PreparedVoice]:
    return [s3gen.prepare(random_conditionals(TINY, prompt, seed)) for seed, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def bucketed(s3gen: S3Gen) -> S3Gen:
    """The same weights with static memory of three sizes; one of them too small for most batches."""
    other = load(TINY)
    other.capture(Graphs(other.device, enabled=True), [(1, 9, 10), (2, 30, 40), (4, 30, 40)])
    return other


@settings(derandomize=True, max_examples=8, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=6))
def test_a_row_of_a_batch_equals_the_row_alone(
    s3gen: S3Gen, voices: list[PreparedVoice], rows: list[tuple[int, int, int]]
) -> None:
    jobs = [VocoderJob(random_tokens(TINY, count, count), voices[voice], seed) for count, voice, seed in rows]
    for job, together in zip(jobs, synthesise(s3gen, jobs), strict=True):
        alone = synthesise(s3gen, [job])[0]
        assert together.shape == alone.shape == (960 * len(job.tokens),)
        assert (together - alone).norm() / alone.norm() < 1e-4


def test_a_long_prompt_is_cropped(s3gen: S3Gen) -> None:
    long = random_conditionals(TINY, 300)
    shorter = S3Gen.from_state_dict(
        build_upstream(TINY).state_dict(), TINY, device=torch.device("cpu"), prompt_tokens=12
    )
    cut = dataclasses.replace(long, prompt_tokens=long.prompt_tokens[:12], prompt_mel=long.prompt_mel[:24])
    tokens = random_tokens(TINY, 20)
    cropped, expected = (
        synthesise(model, [VocoderJob(tokens, model.prepare(voice), 3)])[0]
        for model, voice in ((shorter, long), (s3gen, cut))
    )
    assert (cropped - expected).norm() / expected.norm() < 1e-4
    assert s3gen.prepare(long).frames == 500  # ten seconds, as upstream


@settings(derandomize=True, max_examples=6, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=5))
def test_a_row_in_a_bucket_equals_the_row_alone(
    s3gen: S3Gen, bucketed: S3Gen, voices: list[PreparedVoice], rows: list[tuple[int, int, int]]
) -> None:
    jobs = [VocoderJob(random_tokens(TINY, count, count), voices[voice], seed) for count, voice, seed in rows]
    for job, together in zip(jobs, synthesise(bucketed, jobs), strict=True):
        alone = synthesise(s3gen, [job])[0]
        assert together.shape == alone.shape
        assert (together - alone).norm() / alone.norm() < 1e-4


def test_a_row_that_is_not_finite_leaves_nothing_in_its_bucket(
    s3gen: S3Gen, bucketed: S3Gen, voices: list[PreparedVoice]
) -> None:
    broken = dataclasses.replace(voices[2], mel=torch.full_like(voices[2].mel, torch.nan))
    assert synthesise(bucketed, [VocoderJob(random_tokens(TINY, 40), broken, seed=1)])[0].isnan().any()
    job = VocoderJob(random_tokens(TINY, 25), voices[2], seed=2)
    alone, after = synthesise(s3gen, [job])[0], synthesise(bucketed, [job])[0]
    assert (after - alone).norm() / alone.norm() < 1e-4


def test_the_largest_batches_are_captured_first() -> None:
    lines: list[str] = []
    load(TINY).capture(Graphs(torch.device("cpu"), enabled=False), [(2, 20, 13), (1, 20, 40)], lines.append)
    assert [line.split(",")[1] for line in lines] == [" 1 x 40 tokens", " 2 x 13 tokens"]


def test_a_cpu_takes_the_rows_of_a_batch_one_after_the_other(s3gen: S3Gen, voices: list[PreparedVoice]) -> None:
    jobs = [VocoderJob(random_tokens(TINY, 5 + 8 * n, n), voice, seed=n) for n, voice in enumerate(voices)]
    together = synthesise(s3gen, jobs)
    s3gen.batching.together = False
    try:
        alone = synthesise(s3gen, jobs)
    finally:
        s3gen.batching.together = True
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() / other.norm() < 1e-4


def test_a_meanflow_row_of_a_batch_equals_the_row_alone() -> None:
    dims = dataclasses.replace(TINY, meanflow=True)
    s3gen = load(dims)
    voice = s3gen.prepare(random_conditionals(dims, 8))
    jobs = [VocoderJob(random_tokens(dims, count), voice, seed=count) for count in (5, 21, 13)]
    for job, together in zip(jobs, synthesise(s3gen, jobs), strict=True):
        alone = synthesise(s3gen, [job])[0]
        assert (together - alone).norm() / alone.norm() < 1e-4


def test_the_seed_changes_the_audio_and_nothing_else_does(s3gen: S3Gen, voices: list[PreparedVoice]) -> None:
    first, again, other = synthesise(s3gen, [VocoderJob(random_tokens(TINY, 6), voices[1], seed) for seed in (1, 1, 2)])
    torch.testing.assert_close(first, again, atol=1e-6, rtol=0)
    assert (first - other).abs().max() > 1e-3
