"""The random numbers of utterances."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from chatterbox_engine.kernels.draws import mixed
from chatterbox_engine.s3gen.noise import source_noise, start_noise

CPU = torch.device("cpu")


def start(seed: int, first: int, frames: int) -> Tensor:
    return start_noise([seed], torch.arange(first, first + frames)[None], 80)[0]


@pytest.mark.parametrize("first", [0, 1, 7, 64, 333])
def test_a_frame_has_its_noise_wherever_a_window_begins_and_however_many_follow(first: int) -> None:
    assert torch.equal(start(5, first, 9), start(5, 0, 500)[first : first + 9])
    window, whole = source_noise([5], [first], 9, CPU), source_noise([5], [0], 500, CPU)
    assert torch.equal(window.phases, whole.phases)
    assert torch.equal(window.samples[0], whole.samples[0, 480 * first : 480 * (first + 9)])


def test_rows_of_a_batch_are_what_they_are_alone() -> None:
    both = source_noise([3, 4], [0, 6], 5, CPU)
    for row, (seed, first) in enumerate([(3, 0), (4, 6)]):
        alone = source_noise([seed], [first], 5, CPU)
        assert torch.equal(both.samples[row], alone.samples[0])
        assert torch.equal(both.phases[row], alone.phases[0])


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 5])
def test_noise_is_standard_normal_and_of_nothing_else(seed: int) -> None:
    samples = source_noise([seed], [0], 400, CPU).samples[0].double()
    for values in (samples, start(seed, 0, 2000).flatten().double()):
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
        for away in (1, 2, 40, 80, 480):
            assert abs(float((values[away:] * values[:-away]).mean())) < 4 / math.sqrt(len(values)), away
    other = source_noise([seed + 1], [0], 400, CPU).samples[0].double()
    assert abs(float((samples * other).mean())) < 4 / math.sqrt(len(samples))


def test_phases_are_angles_of_a_uniform_distribution() -> None:
    phases = source_noise(range(500), [0] * 500, 1, CPU).phases
    assert not phases[:, 0].any()
    assert stats.kstest(phases[:, 1:].flatten().numpy(), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


def test_seeds_that_differ_only_in_sign_or_high_bits_differ_in_noise() -> None:
    draws = [start(seed, 0, 1) for seed in (7, -7, 7 + 2**32, 7 - 2**63)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert not torch.equal(start(7, 0, 1)[0], source_noise([7], [0], 1, CPU).samples[0, :80])


def test_the_hash_is_that_of_splitmix64() -> None:
    step = 0x9E3779B97F4A7C15
    counters = torch.tensor([(1234567 + step * n + 2**63) % 2**64 - 2**63 for n in (1, 2, 3)])
    # the first numbers of the reference implementation (Vigna, splitmix64.c) from the seed 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [number % 2**64 for number in mixed(counters).tolist()] == expected
