"""Products by the CPU kernel of rows that are many, long, far apart, or of extreme size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.kernels.cpu.dots import DEPTH, MANY_ROWS
from chatterbox_engine.kernels.cpu.products import TOGETHER
from chatterbox_engine.s3gen.layers import windows
from tests.unit.cpu_products import project

LIMIT = {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 2e-3}
"""Relative errors of a row. Rounding factors to bfloat16 is 2.4e-3; float16 is 1.0e-3, 1.3e-3 with vectors of eight."""
HALF = torch.float16
LONG = 2 * DEPTH + 64
"""Inputs that are multiplied in three parts, the last of which is shorter."""
PIECE_ROWS = TOGETHER // LONG // MANY_ROWS * MANY_ROWS
"""Such rows in a piece of work."""


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(got: Tensor, exact: Tensor) -> float:
    """The largest relative error of a row."""
    return float(((got.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).max())


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("rows", [3, PIECE_ROWS, 2 * PIECE_ROWS + 5])
def test_many_long_rows_are_multiplied(dtype: torch.dtype, rows: int) -> None:
    x, weight, bias = numbers(rows, LONG, dtype=dtype), numbers(75, LONG, seed=1).to(dtype), numbers(75, dtype=dtype)
    got = project(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert error(got, exact) < LIMIT[dtype], f"{error(got, exact):.2e}"


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("dtype", LIMIT)
def test_a_long_row_has_the_same_bits_in_prompts_of_every_length_on_every_number_of_threads(dtype: torch.dtype) -> None:
    x, gain = numbers(300, LONG, dtype=dtype), numbers(LONG, dtype=dtype, seed=1)
    weight, shift = numbers(75, LONG, dtype=dtype, seed=2), numbers(LONG, dtype=dtype, seed=3)
    torch.set_num_threads(1)
    alone = torch.cat([project(row, weight, None, gain=gain, shift=shift, eps=1e-5) for row in x.split(1)])
    lengths = [*range(2, 18), 100, PIECE_ROWS - 1, PIECE_ROWS, PIECE_ROWS + 1, 2 * PIECE_ROWS + 1, 300]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in lengths:
            got = project(x[None, :rows], weight, None, gain=gain, shift=shift, eps=1e-5)
            assert torch.equal(got[0], alone[:rows]), f"{rows} rows on {threads} threads"


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("runs", [1, 3])
def test_overlapping_rows_and_those_of_a_wider_tensor_are_as_their_copies(dtype: torch.dtype, runs: int) -> None:
    x, weight = numbers(runs, 21, 32, dtype=dtype), numbers(50, 96, dtype=dtype, seed=1)
    for rows in (windows(x, 3), numbers(runs, 30, 160, dtype=dtype, seed=2)[:, 4:23, 32:128]):
        assert not rows.is_contiguous()
        got = project(rows, weight, None)
        assert got.shape == (runs, 19, 50)
        assert torch.equal(got, project(rows.contiguous(), weight, None))
        assert error(got, F.linear(rows.double(), weight.double())) < LIMIT[dtype]


@pytest.mark.parametrize("shifted", [False, True])
def test_beside_float16_weights_a_norm_takes_float32_rows_beyond_float16s_range(shifted: bool) -> None:
    x, weight, bias = 1e6 * numbers(9, 64), numbers(70, 64, dtype=HALF, seed=1), numbers(70, dtype=HALF, seed=2)
    gain, shift = numbers(64, dtype=HALF, seed=3), numbers(64, dtype=HALF, seed=4) if shifted else None
    got = project(x, weight, bias, gain=gain, shift=shift, eps=1e-5)
    wide = x.double()
    if shift is None:
        normed = F.rms_norm(wide, gain.shape, gain.double(), 1e-5)
    else:
        normed = F.layer_norm(wide, gain.shape, gain.double(), shift.double(), 1e-5)
    assert got.dtype == HALF
    assert error(got, F.linear(normed, weight.double(), bias.double())) < LIMIT[HALF]


@pytest.mark.parametrize("x_type", [torch.float32, HALF])
@pytest.mark.parametrize("outputs", [24, 70])
def test_beside_float16_weights_a_float32_residual_becomes_the_result(x_type: torch.dtype, outputs: int) -> None:
    x, weight = numbers(9, 64, dtype=x_type), numbers(outputs, 64, dtype=HALF, seed=1)
    residual = 1e6 * numbers(9, outputs, seed=2)
    before = residual.double()
    got = project(x, weight, None, residual=residual)
    assert got is residual
    product = F.linear(x.double(), weight.double())
    assert error(got, before + product) < 1e-6
    assert error(got.double() - before, product) < 1e-2  # of what float32 keeps of it


@pytest.mark.parametrize("activation", ["none", "swiglu"])
def test_a_row_of_any_size_has_the_usual_relative_error(activation: str) -> None:
    sizes = [1.0, 1e3, 1e-6, 1e10, 1e-10]
    x, weight = numbers(5, 96), numbers(70, 96, dtype=HALF, seed=1)
    x *= torch.tensor(sizes)[:, None]
    out = torch.empty(5, 70 if activation == "none" else 35)
    project(x, weight, None, activation=activation, out=out)  # type: ignore[arg-type]
    exact = F.linear(x.double(), weight.double())
    if activation == "swiglu":
        gate, up = exact.chunk(2, dim=1)
        exact = F.silu(gate) * up
    assert error(out, exact) < 2 * LIMIT[HALF], f"{error(out, exact):.2e}"
    assert error(out, exact) > 0


def test_large_rows_of_float16_have_the_usual_relative_error() -> None:
    x, weight = numbers(6, LONG), numbers(70, LONG, dtype=HALF, seed=1)
    x[0], x[1], x[2] = 1e4 * x[0], 60_000 * x[1].sign(), 60_000.0
    x[3], x[4] = 1e-6 * x[3], 6e-8 * x[4].sign()
    x = x.to(HALF)
    out = torch.empty(6, 70)
    project(x, weight, None, out=out)
    exact = F.linear(x.double(), weight.double())
    assert error(out, exact) < LIMIT[HALF], f"{error(out, exact):.2e}"


@pytest.mark.parametrize("x_type", [torch.float32, HALF])
def test_zeros_and_nan_stay_what_they_are(x_type: torch.dtype) -> None:
    x, weight, bias = numbers(9, 64), numbers(70, 64, dtype=HALF, seed=1), numbers(70, dtype=HALF, seed=2)
    x[1], x[3, 5] = 0.0, torch.nan
    x = x.to(x_type)
    got, exact = project(x, weight, bias), F.linear(x.double(), weight.double(), bias.double())
    assert torch.equal(got[1], bias)
    assert got[3].isnan().all()
    rest = torch.tensor([0, 2, 4, 5, 6, 7, 8])
    assert error(got[rest], exact[rest]) < LIMIT[HALF]


@pytest.mark.parametrize("x_type", [torch.float32, HALF])
def test_infinity_stays_what_it_is(x_type: torch.dtype) -> None:
    x, weight, bias = numbers(9, 64), numbers(70, 64, dtype=HALF, seed=1), numbers(70, dtype=HALF, seed=2)
    x[4, 7], x[5, 9] = torch.inf, -torch.inf
    x = x.to(x_type)
    got, exact = project(x, weight, bias), F.linear(x.double(), weight.double(), bias.double())
    assert torch.equal(got[4:6].double(), exact[4:6])


def test_the_largest_rows_of_float32_have_the_usual_relative_error() -> None:
    x, weight = 2e38 * numbers(3, 64).clamp(-1, 1), numbers(70, 64, dtype=HALF, seed=1) / 256
    out = torch.empty(3, 70)
    project(x, weight, None, out=out)
    assert error(out, F.linear(x.double(), weight.double())) < LIMIT[HALF]
