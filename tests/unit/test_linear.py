"""Packed matrices give the products of plain ones, to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from chatterbox_engine.linear import linear, pack

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this processor"
)


@needs_bfloat16
@pytest.mark.parametrize("rows", [1, 3, 4, 17, 200])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_product_has_the_bits_of_the_plain_one(rows: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(2, rows, 96, generator=generator).bfloat16()
    weight = torch.randn(160, 96, generator=generator).bfloat16()
    offset = torch.randn(160, generator=generator).bfloat16() if bias else None
    packed = pack(weight)
    assert packed.is_mkldnn
    assert torch.equal(linear(x, packed, offset), F.linear(x, weight, offset))


def test_other_matrices_stay_as_they_are() -> None:
    weight = torch.randn(5, 4)
    assert pack(weight) is weight
    assert torch.equal(linear(torch.ones(3, 4), weight), F.linear(torch.ones(3, 4), weight))
