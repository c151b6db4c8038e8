"""The CPU kernel for attention of all positions agrees with torch, and a row has the same bits in every batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.kernels.cpu.attention import QUERIES, attention
from chatterbox_engine.s3gen.layers import self_attention
from tests.unit.guarded import guarded

HALF = torch.float16
LENGTHS = [1, 7, QUERIES - 1, QUERIES, QUERIES + 1, 200]
LIMIT = 4e-3
"""Relative error of a row of normal numbers, of which rounding the weights and the result to float16 is a half."""
SHARP_LIMIT = 2e-2
"""The same where queries are thirty times as large: a score of 200 has an error of 1/16 in float16."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(HALF)


def exactly(qkv: Tensor, lengths: list[int]) -> Tensor:
    """By torch in float64."""
    rows, positions, _, heads, size = qkv.shape
    out = qkv.new_zeros(rows, positions, heads * size, dtype=torch.float64)
    for row, length in enumerate(lengths):
        q, k, v = qkv[row, :length].double().permute(1, 2, 0, 3)
        out[row, :length] = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
    return out


def error(got: Tensor, exact: Tensor) -> float:
    """The largest relative error of a row."""
    difference = (got.double() - exact).flatten(1).norm(dim=1)
    return float((difference / exact.flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize(("heads", "size"), [(1, 32), (2, 64), (3, 96), (8, 64)])
@pytest.mark.parametrize("lengths", [*([length] for length in LENGTHS), [7, 200], [97, 1, 95]])
def test_attention_is_torchs_and_zero_after_a_rows_length(heads: int, size: int, lengths: list[int]) -> None:
    qkv = numbers(len(lengths), max(lengths) + 3, 3, heads, size)
    for row, length in enumerate(lengths):
        qkv[row, length:] = torch.nan
    got, exact = attention(qkv, torch.tensor(lengths)), exactly(qkv, lengths)
    assert got.dtype == HALF
    assert error(got, exact) < LIMIT, f"{error(got, exact):.2e}"
    for row, length in enumerate(lengths):
        assert not got[row, length:].any()


@pytest.mark.parametrize("size", [32, 64, 96])
def test_large_scores_have_the_errors_of_float16(size: int) -> None:
    qkv = numbers(2, 200, 3, 2, size)
    qkv[:, :, 0] *= 30
    got, exact = attention(qkv, torch.tensor([200, 97])), exactly(qkv, [200, 97])
    assert error(got, exact) < SHARP_LIMIT, f"{error(got, exact):.2e}"


def test_of_equal_scores_the_result_is_the_mean_of_the_values() -> None:
    qkv = numbers(1, 200, 3, 2, 64)
    qkv[:, :, 1] = qkv[:, :1, 1]
    got, mean = attention(qkv, torch.tensor([200])), qkv[:, :, 2].double().mean(1).flatten(1)
    assert float((got.double() - mean[:, None]).abs().max()) < 1e-3


@pytest.mark.parametrize("sign", [1, -1])
def test_a_key_far_above_the_rest_takes_all_and_one_far_below_nothing(sign: int) -> None:
    qkv = numbers(1, 101, 3, 2, 64)
    qkv[:, :, :2] = 0.5
    qkv[0, 100, 1] = sign * 100.0
    got = attention(qkv, torch.tensor([101]))
    if sign > 0:
        assert torch.equal(got[0], qkv[0, 100, 2].flatten().expand(101, -1))
    else:
        without = attention(qkv[:, :100], torch.tensor([100]))
        assert torch.equal(got[:, :100], without)


@pytest.mark.parametrize("part", [0, 1, 2])  # query, key and value
def test_nan_stays_in_its_row_and_head_and_where_it_is_attended_to(part: int) -> None:
    lengths = torch.tensor([120, 110, 120])
    qkv = numbers(3, 120, 3, 2, 64)
    clean = attention(qkv, lengths)
    qkv[1, 50, part, 1, 5] = torch.nan
    got = attention(qkv, lengths)
    wanted = torch.zeros(3, 120, 2, 64, dtype=torch.bool)
    if part == 0:
        wanted[1, 50, 1] = True
    elif part == 1:
        wanted[1, :110, 1] = True
    else:
        wanted[1, :110, 1, 5] = True
    assert torch.equal(got.isnan(), wanted.flatten(2))
    assert torch.equal(got[~got.isnan()], clean[~got.isnan()])


def test_scores_beyond_float16s_range_are_nan_and_not_plausible_numbers() -> None:
    qkv = numbers(1, 20, 3, 1, 64)
    qkv[0, :, :2] = 300.0
    assert attention(qkv, torch.tensor([20])).isnan().all()


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("size", [32, 96])
def test_a_row_has_the_same_bits_alone_and_in_batches_on_every_number_of_threads(size: int) -> None:
    lengths = torch.tensor([97, 1, 200, 96, 7])
    qkv = numbers(5, 300, 3, 3, size)
    torch.set_num_threads(1)
    alone = [attention(qkv[i, None, :length], lengths[i, None])[0] for i, length in enumerate(lengths.tolist())]
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        for rows, positions in ((5, 300), (5, 200), (3, 208), (2, 97)):
            got = attention(qkv[:rows, :positions], lengths[:rows])
            for row, own in enumerate(alone[:rows]):
                assert torch.equal(got[row, : len(own)], own), f"row {row} of {rows} on {threads} threads"


@pytest.mark.parametrize("positions", [1, 7, 97])
def test_nothing_is_read_after_the_last_position(positions: int) -> None:
    qkv, lengths = numbers(2, positions, 3, 2, 32), torch.tensor([positions, positions])
    assert torch.equal(attention(guarded(qkv), guarded(lengths)), attention(qkv, lengths))


@pytest.mark.parametrize(("rows", "positions"), [(0, 5), (2, 0)])
def test_of_no_positions_there_is_no_attention(rows: int, positions: int) -> None:
    got = attention(numbers(rows, positions, 3, 2, 32), torch.zeros(rows, dtype=torch.int64))
    assert got.shape == (rows, positions, 64)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the thread's exception, printed
@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("length", [-1, 21])
def test_a_length_that_a_row_cannot_have_is_an_error(length: int) -> None:
    torch.set_num_threads(1)
    with pytest.raises(RuntimeError, match="1 of 1 threads"):
        attention(numbers(2, 20, 3, 2, 32), torch.tensor([20, length]))


@pytest.mark.parametrize("size", [32, 24])  # by the kernel and by torch
@pytest.mark.parametrize("lengths", [[30, 13], None])
def test_the_flows_attention_in_float16_is_torchs_for_heads_of_every_size(size: int, lengths: list[int] | None) -> None:
    qkv = numbers(2, 30, 3, 2, size)
    got = self_attention(qkv, None if lengths is None else torch.tensor(lengths))
    exact = exactly(qkv, lengths or [30, 30])
    for row, length in enumerate(lengths or [30, 30]):
        assert error(got[row, None, :length], exact[row, None, :length]) < LIMIT
