"""The flow as it runs against the flow in plain steps, the same weights and noise in both."""

from __future__ import annotations

import pytest
import torch

from chatterbox_engine.s3gen.flow import Flow
from chatterbox_engine.s3gen.flow_reference import ReferenceFlow
from chatterbox_engine.s3gen.weights import Weights
from tests.conftest import CheckpointOf


@pytest.mark.parametrize(("name", "steps"), [("tiny", 3), ("tiny-turbo", 2)])  # with guidance, and MeanFlow
@torch.inference_mode()
def test_the_flow_is_its_reference(checkpoint_of: CheckpointOf, name: str, steps: int) -> None:
    checkpoint = checkpoint_of(name)
    dims, state, cpu = checkpoint.dims.s3gen, checkpoint.s3gen_state(), torch.device("cpu")

    def weights() -> Weights:
        return Weights(state, ("flow.",), cpu).part("flow").part("decoder.estimator")

    generator = torch.Generator().manual_seed(0)
    noise, mean, prompt = torch.randn(3, 2, 40, dims.mel, generator=generator)
    speaker, lengths = torch.randn(2, dims.mel, generator=generator), torch.tensor([40, 26])
    got = Flow(weights(), dims, torch.float32, steps)(noise, mean, speaker, prompt, lengths)
    expected = ReferenceFlow(weights(), dims, steps)(noise, mean, speaker, prompt, lengths)
    for row, length in enumerate(lengths.tolist()):
        exact = expected[row, :length]
        error = float((got[row, :length] - exact).norm() / exact.norm())
        assert error < 1e-5, f"row {row}: {error:.2e}"
    assert (expected - noise).norm() > 0.01 * noise.norm(), "the flow does something"
