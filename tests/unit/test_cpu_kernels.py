"""The CPU kernels agree with torch, and a row has the same bits regardless of the batch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.kernels.cpu import launch
from chatterbox_engine.kernels.cpu.decode_attention import decode_attention
from chatterbox_engine.kernels.cpu.products import Product
from chatterbox_engine.kernels.cpu.snake import snake
from chatterbox_engine.kernels.linear import Projection, packed, widened
from chatterbox_engine.kernels.shapes import Activation
from chatterbox_engine.t3.attention import rotate
from tests.unit.cpu_products import project

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 8e-3}  # of a result's size, at least one
PRODUCT_TOLERANCE = TOLERANCE | {torch.float16: 1.5e-2}  # whose sums are longer where vectors are shorter
DTYPES = tuple(TOLERANCE)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(got: Tensor, exact: Tensor) -> float:
    return float(((got.double() - exact).abs() / exact.abs().clamp(min=1)).max())


def exactly(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    activation: Activation,
    residual: Tensor | None,
) -> Tensor:
    """A `Projection` by torch in float64."""

    def wide(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.double()

    x = x.double()
    if gain is not None and shift is None:
        x = F.rms_norm(x, gain.shape, wide(gain), 1e-5)
    elif gain is not None:
        x = F.layer_norm(x, gain.shape, wide(gain), wide(shift), 1e-5)
    x = F.linear(x, weight.double(), wide(bias))
    if activation == "gelu":
        x = F.gelu(x, approximate="tanh")
    elif activation == "swiglu":
        gate, up = x.chunk(2, dim=1)
        x = F.silu(gate) * up
    return x if residual is None else x + residual.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["none", "gelu", "swiglu"])
@pytest.mark.parametrize("norm", ["", "gain", "gain shift"])
@pytest.mark.parametrize(("rows", "outputs"), [(1, 70), (4, 24), (7, 2), (9, 194)])
def test_a_product_is_torchs(dtype: torch.dtype, activation: Activation, norm: str, rows: int, outputs: int) -> None:
    inputs, results = 96, outputs // 2 if activation == "swiglu" else outputs
    x, residual = numbers(rows, inputs, dtype=dtype, seed=1), numbers(rows, results, dtype=dtype, seed=2)
    weight, bias = numbers(outputs, inputs, dtype=dtype, seed=3) / 8, numbers(outputs, dtype=dtype, seed=4)
    bias_or_none = None if activation == "swiglu" else bias
    gain = numbers(inputs, dtype=dtype, seed=5) if "gain" in norm else None
    shift = numbers(inputs, dtype=dtype, seed=6) if "shift" in norm else None
    for added in (None, residual):
        exact = exactly(x, weight, bias_or_none, gain, shift, activation, added)
        got = project(x, weight, bias_or_none, gain=gain, shift=shift, eps=1e-5, activation=activation, residual=added)
        assert got.dtype == dtype
        assert added is None or got is added
        assert error(got, exact) < PRODUCT_TOLERANCE[dtype], f"{error(got, exact):.2e}"


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_product_has_the_same_bits_regardless_of_batch_and_threads(dtype: torch.dtype) -> None:
    x, gain = numbers(64, 1024, dtype=dtype), numbers(1024, dtype=dtype, seed=1)
    weight, bias = numbers(771, 1024, dtype=dtype, seed=2), numbers(771, dtype=dtype, seed=3)
    torch.set_num_threads(1)
    alone = torch.cat([project(row, weight, bias, gain=gain, activation="gelu") for row in x.split(1)])
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in (2, 3, 4, 5, 8, 17, 64):
            got = project(x[:rows], weight, bias, gain=gain, activation="gelu")
            assert torch.equal(got, alone[:rows]), f"{rows} rows on {threads} threads"


@pytest.mark.parametrize("activation", ["none", "gelu", "swiglu"])
def test_large_sums_and_nan_stay_what_they_are(activation: Activation) -> None:
    x = numbers(6, 64)
    x[1], x[2], x[3, 5] = x[1] * 1e4, -x[1], torch.nan
    weight = numbers(66, 64, seed=1)
    got = project(x, weight, None, activation=activation)
    assert got[3].isnan().all()
    rest = torch.tensor([0, 1, 2, 4, 5])
    exact = exactly(x[rest], weight, None, None, None, activation, None)
    assert float(((got[rest] - exact).abs() / exact.abs().amax(dim=1, keepdim=True)).max()) < 1e-6


def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Records the input shapes that later projections pass to the kernel."""
    calls: list[tuple[int, ...]] = []
    kernel = Product.__call__

    def counted(product: Product, x: Tensor, *args: Any) -> Tensor:
        calls.append(tuple(x.shape))
        return kernel(product, x, *args)

    monkeypatch.setattr(Product, "__call__", counted)
    return calls


def test_a_product_takes_the_kernel_unless_a_row_is_no_multiple_of_its_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kernel_calls(monkeypatch)
    x, weight = numbers(3, 20), numbers(5, 20, seed=1)
    torch.testing.assert_close(Projection(weight)(x), F.linear(x, weight))
    assert not calls
    x, weight = x[:, :16], weight[:, :16].contiguous()
    torch.testing.assert_close(Projection(weight)(x), F.linear(x, weight))
    assert calls == [(3, 16)]


def test_a_float16_product_takes_the_kernel_for_prompts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kernel_calls(monkeypatch)
    x, weight = numbers(2, 7, 64, dtype=torch.float16), numbers(5, 64, dtype=torch.float16, seed=1)
    for inputs in (48, 64):
        matrix = weight[:, :inputs].contiguous()
        for rows in (x[:, 0, :inputs], x[:, :, :inputs]):
            wanted = F.linear(rows.double(), matrix.double())
            assert error(Projection(matrix)(rows), wanted) < TOLERANCE[torch.float16]
    assert calls == [(2, 64), (2, 7, 64)]
    assert packed(weight) is weight


@pytest.mark.parametrize("biased", [True, False])
def test_a_widened_product_is_torchs_and_a_row_has_the_same_bits_in_every_batch(biased: bool) -> None:
    dtype = torch.bfloat16
    x, weight = numbers(5, 20, 48, dtype=dtype), numbers(700, 48, dtype=dtype, seed=1)
    bias = numbers(700, dtype=dtype, seed=2) if biased else None
    got = widened(x, weight, bias)
    wanted = F.linear(x.double(), weight.double(), bias.double() if bias is not None else None)
    assert got.dtype == dtype
    assert error(got, wanted) < TOLERANCE[dtype]
    for rows, length in ((1, 1), (1, 15), (2, 8), (3, 20)):
        assert torch.equal(widened(x[:rows, :length], weight, bias), got[:rows, :length])


@pytest.mark.parametrize("inputs", [32, 20])  # by the kernel and by torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [(), (5,)])
def test_the_residual_of_a_decode_step_becomes_the_result_and_a_prompts_stays(
    dtype: torch.dtype, inputs: int, length: tuple[int, ...]
) -> None:
    x, weight = numbers(2, *length, inputs, dtype=dtype), numbers(6, inputs, dtype=dtype, seed=1)
    residual = numbers(2, *length, 6, dtype=dtype, seed=2)
    before = residual.clone()
    got = Projection(weight)(x, residual)
    assert error(got, F.linear(x.double(), weight.double()) + before.double()) < TOLERANCE[dtype]
    assert (got is residual) == (not length)
    assert torch.equal(residual, got if not length else before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("heads", [2, 6, 7, 16])
def test_attention_is_torchs_and_stores_the_new_position(dtype: torch.dtype, rotated: bool, heads: int) -> None:
    size, lengths = 32, (1, 17, 300)
    start = torch.tensor([3, 10, 40])
    position = torch.tensor(lengths) - 1
    pool = numbers(2, 350, heads, size, dtype=dtype)
    qkv = numbers(3, 3, heads, size, dtype=dtype, seed=1)
    angles = numbers(3, size // 2, seed=2)
    rotation = torch.stack([angles.cos(), angles.sin()], dim=1).to(dtype) if rotated else None
    query, key, value = qkv.double().unbind(1)
    if rotation is not None:
        query, key = (rotate(part, rotation.double()[:, None]) for part in (query, key))
    expected = pool.clone()
    expected[0, start + position], expected[1, start + position] = key.to(dtype), value.to(dtype)
    got = decode_attention(qkv, rotation, *pool, start, position)
    assert error(pool, expected.double()) < TOLERANCE[dtype]
    for row, (first, count) in enumerate(zip(start.tolist(), lengths, strict=True)):
        keys, values = pool[:, first : first + count].double().transpose(1, 2)
        exact = F.scaled_dot_product_attention(query[row, :, None], keys, values)[:, 0]
        assert error(got[row], exact) < TOLERANCE[dtype], f"row {row}: {error(got[row], exact):.2e}"
        turn = None if rotation is None else rotation[row, None]
        alone = decode_attention(qkv[row, None], turn, *pool, start[row, None], position[row, None])
        assert torch.equal(alone[0], got[row])


def test_attention_of_scores_that_no_float_has_the_exponential_of() -> None:
    pool, qkv = numbers(2, 20, 2, 16) * 1e3, numbers(1, 3, 2, 16, seed=1) * 1e3
    start, position = torch.tensor([0]), torch.tensor([19])
    got = decode_attention(qkv, None, *pool, start, position)
    keys, values = pool.double().transpose(1, 2)
    exact = F.scaled_dot_product_attention(qkv[0, 0, :, None].double(), keys, values)[:, 0]
    assert error(got[0], exact) < 1e-5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the thread's exception, printed
@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("place", [-3, 17])
def test_attention_outside_of_the_pool_is_an_error(place: int, threads: int) -> None:
    torch.set_num_threads(threads)
    pool, qkv = numbers(2, 20, 2, 16), numbers(1, 3, 2, 16)
    with pytest.raises(RuntimeError, match=f"1 of {threads} threads"):
        decode_attention(qkv, None, *pool, torch.tensor([place]), torch.tensor([3]))


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_snake_is_torchs(changed: bool, masked: bool) -> None:
    x, change = 30 * numbers(2, 300, 24), numbers(2, 300, 24, seed=1)
    alpha = 4 * torch.rand(24, generator=torch.Generator().manual_seed(2))
    inverse = 1 / (alpha + 1e-9)
    mask = torch.arange(300)[None, :, None] < torch.tensor([300, 211])[:, None, None]
    y = (x + change if changed else x).double()
    exact = y + torch.sin(y * alpha).square() * inverse
    exact = exact * mask if masked else exact
    total, active = snake(x, alpha, inverse, mask if masked else None, change=change if changed else None)
    assert error(total, y) < 1e-6
    assert error(active, exact) < 1e-5
    assert total is (change if changed else x)


@pytest.mark.usefixtures("threads_kept")
def test_a_released_team_is_made_again() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    torch.set_num_threads(3)
    x, weight = numbers(4, 64), numbers(48, 64, seed=1)
    before = project(x, weight, None)
    busy = threads()
    launch.release_threads()
    assert threads() == busy - 2
    assert torch.equal(project(x, weight, None), before)
    assert threads() == busy


def test_kernels_are_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def cfunc(_declared: Any, cache: bool = False) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda kernel: SimpleNamespace(address=kernel.__name__)

    monkeypatch.setattr(launch, "cfunc", cfunc)

    def kernel(_arguments: Any) -> None: ...

    assert launch.Kernel(kernel).address == "kernel"
    assert asked == [True, False]
