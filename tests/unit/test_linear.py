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


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("outputs", [768, 771])
@pytest.mark.parametrize("bias", [False, True])
def test_a_row_of_a_product_in_parts_has_the_same_bits_in_any_company(bias: bool, outputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(64, 1024, generator=generator), torch.randn(outputs, 1024, generator=generator)
    offset = torch.randn(outputs, generator=generator) if bias else None
    packed = pack(weight, padded=True)
    assert packed.shape == (8, -(-outputs // 8), 1024)
    torch.set_num_threads(1)
    fours = torch.cat([linear(rows, packed, offset) for rows in x.split(4)])
    torch.testing.assert_close(fours[:, :outputs], F.linear(x, weight, offset))
    assert bias == (fours.shape[1] == outputs) or outputs == 768
    for count in (1, 2):
        torch.set_num_threads(count)
        for rows in (4, 8, 12, 16, 32, 64):
            assert torch.equal(linear(x[:rows], packed, offset), fours[:rows]), f"{rows} rows on {count} threads"


def test_prompts_take_parts_for_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight = torch.randn(2, 60, 1024, generator=generator), torch.randn(771, 1024, generator=generator)
    offset = torch.randn(771, generator=generator)
    assert torch.equal(linear(x, pack(weight, padded=True), offset), F.linear(x, weight, offset))
    assert torch.equal(linear(x, pack(weight[:768])), F.linear(x, weight[:768]))


def test_other_matrices_stay_as_they_are() -> None:
    weight = torch.randn(5, 4)
    assert pack(weight) is weight
    odd = torch.zeros(771, 1024)
    assert pack(odd) is odd
    assert torch.equal(linear(torch.ones(3, 4), weight), F.linear(torch.ones(3, 4), weight))
