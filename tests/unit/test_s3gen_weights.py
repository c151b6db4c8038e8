"""Strict reading of the S3Gen part of a checkpoint."""

from __future__ import annotations

import pytest
import torch

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.errors import CheckpointError
from chatterbox_engine.s3gen import S3Gen
from chatterbox_engine.s3gen.weights import Weights

CPU = torch.device("cpu")


def test_missing_misshapen_and_unknown_tensors_are_all_named() -> None:
    weights = Weights({"flow.a": torch.zeros(2), "flow.b": torch.zeros(3)}, ("flow.",), CPU)
    part = weights.part("flow")
    part.take("a", 3)
    part.take("c", 1)
    with pytest.raises(CheckpointError) as error:
        weights.finish()
    assert "flow.a has shape [2], not [3]" in str(error.value)
    assert "flow.c is missing" in str(error.value)
    assert "flow.b is unknown" in str(error.value)


def test_tensors_of_other_parts_are_ignored() -> None:
    weights = Weights({"flow.a": torch.ones(2), "tokenizer.x": torch.zeros(1)}, ("flow.",), CPU)
    assert weights.part("flow").take("a", 2).sum() == 2
    weights.finish()


def test_an_empty_checkpoint_is_an_error_that_says_how_much_is_missing() -> None:
    dims = S3GenDims(encoder=8, encoder_heads=1, encoder_units=8, decoder=8, decoder_heads=1, hift=8, f0=8)
    with pytest.raises(CheckpointError, match=r"is missing; .* and \d+ more"):
        S3Gen.from_state_dict({}, dims, device=CPU)


def test_weight_norm_is_multiplied_out() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 4, 5))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(1.7)
    weights = Weights({f"flow.{name}": tensor for name, tensor in layer.state_dict().items()}, ("flow.",), CPU)
    torch.testing.assert_close(weights.weight_norm("flow", 4, 3, 5), layer.weight.detach())
