"""The random numbers of one utterance."""

from __future__ import annotations

import math

import pytest
import torch

from chatterbox_engine.s3gen.noise import source_noise, start_noise


@pytest.mark.parametrize("frames", [1, 2, 7, 64, 333])
def test_a_frame_keeps_its_noise_however_many_follow(frames: int) -> None:
    assert torch.equal(start_noise(5, frames, 80), start_noise(5, 500, 80)[:frames])
    short, long = source_noise(5, frames), source_noise(5, 500)
    assert torch.equal(short.phases, long.phases)
    assert torch.equal(short.samples, long.samples[: 480 * frames])


def test_noise_is_standard_normal_and_phases_are_angles() -> None:
    noise = source_noise(1, 400)
    for values in (noise.samples, start_noise(1, 400, 80)):
        assert abs(float(values.mean())) < 0.02
        assert abs(float(values.std()) - 1) < 0.02
    assert noise.phases[0] == 0
    assert noise.phases.abs().max() <= math.pi
    assert noise.phases[1:].abs().min() > 0


def test_seeds_that_differ_only_in_sign_or_high_bits_differ_in_noise() -> None:
    draws = [start_noise(seed, 1, 80) for seed in (7, -7, 7 + 2**32, 7 - 2**63)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert not torch.equal(start_noise(7, 1, 8)[0], source_noise(7, 1).samples[:8])
