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


@pytest.mark.parametrize("shape", [(4, 1024), (8, 1024), (32, 1024), (2, 60, 1024)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_in_parts_has_the_bits_of_the_plain_one(shape: tuple[int, ...], bias: bool, threads: int) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    x, weight = torch.randn(shape, generator=generator), torch.randn(768, 1024, generator=generator)
    offset = torch.randn(768, generator=generator) if bias else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        packed = pack(weight)
        assert packed.shape == (8, 96, 1024)
        plain = F.linear(x, weight, offset if len(shape) == 3 else None)
        plain = plain + offset if bias and len(shape) == 2 else plain
        assert torch.equal(linear(x, packed, offset), plain)
    finally:
        torch.set_num_threads(before)


def test_other_matrices_stay_as_they_are() -> None:
    weight = torch.randn(5, 4)
    assert pack(weight) is weight
    assert torch.equal(linear(torch.ones(3, 4), weight), F.linear(torch.ones(3, 4), weight))
