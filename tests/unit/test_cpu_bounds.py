"""The CPU kernels at the bounds of what they are given: the ends of memory, no rows, and numbers close to zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.kernels.cpu.alignment import alignment
from chatterbox_engine.kernels.cpu.decode_attention import decode_attention
from chatterbox_engine.kernels.cpu.dots import BLOCKS, MANY_ROWS
from chatterbox_engine.kernels.cpu.snake import snake
from chatterbox_engine.kernels.linear import Projection
from chatterbox_engine.kernels.shapes import Activation
from chatterbox_engine.types import Reading
from tests.unit.cpu_products import project
from tests.unit.guarded import guarded

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["none", "swiglu"])
@pytest.mark.parametrize("inputs", [32, 1056])
@pytest.mark.parametrize("rows", [1, 4, BLOCKS * MANY_ROWS + 1, 2 * BLOCKS * MANY_ROWS + 3])
def test_products_read_and_write_nothing_after_their_tensors(
    dtype: torch.dtype, activation: Activation, inputs: int, rows: int
) -> None:
    for results in (1, 2, 25, 47):
        outputs = 2 * results if activation == "swiglu" else results
        x, weight = numbers(rows, inputs, dtype=dtype), numbers(outputs, inputs, dtype=dtype, seed=1) / 8
        bias = None if activation == "swiglu" else numbers(outputs, dtype=dtype, seed=2)
        gain, shift = numbers(inputs, dtype=dtype, seed=3), numbers(inputs, dtype=dtype, seed=4)
        residual = numbers(rows, results, dtype=dtype, seed=5)
        wanted = project(x, weight, bias, gain=gain, shift=shift, activation=activation, residual=residual.clone())
        got = project(
            guarded(x),
            guarded(weight),
            None if bias is None else guarded(bias),
            gain=guarded(gain),
            shift=guarded(shift),
            activation=activation,
            residual=guarded(residual),
            out=guarded(torch.empty(rows, results, dtype=dtype)),
        )
        assert torch.equal(got, wanted), f"{results} results"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "heads", "size"), [(1, 1, 32), (3, 9, 16), (9, 3, 96)])
def test_a_steps_attention_reads_nothing_after_its_tensors(
    dtype: torch.dtype, rows: int, heads: int, size: int
) -> None:
    held = 20
    qkv, rotation = numbers(rows, 3, heads, size, dtype=dtype), numbers(rows, 2, size // 2, dtype=dtype, seed=1)
    keys, values = numbers(2, rows * held, heads, size, dtype=dtype, seed=2)
    start, position = held * torch.arange(rows), torch.full((rows,), held - 1)
    ours = guarded(keys), guarded(values)
    got = decode_attention(guarded(qkv), guarded(rotation), *ours, guarded(start), guarded(position))
    assert torch.equal(got, decode_attention(qkv, rotation, keys, values, start, position))
    assert torch.equal(ours[0], keys)
    assert torch.equal(ours[1], values)


def test_the_activation_reads_nothing_after_its_tensors() -> None:
    x, change, mask = numbers(2, 31, 7), numbers(2, 31, 7, seed=1), numbers(2, 31, 1, seed=2) > 0
    alpha, inverse = numbers(2, 7, seed=3).abs()
    ours = guarded(x), guarded(alpha), guarded(inverse), guarded(mask)
    got = snake(*ours, change=guarded(change))
    for own, wanted in zip(got, snake(x, alpha, inverse, mask, change=change), strict=True):
        assert torch.equal(own, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_no_rows_there_is_nothing_to_compute(dtype: torch.dtype) -> None:
    none, weight = torch.zeros(0, dtype=torch.int64), numbers(50, 64, dtype=dtype)
    for shape in ((0,), (2, 0), (0, 3)):
        assert Projection(weight)(torch.zeros(*shape, 64, dtype=dtype)).shape == (*shape, 50)
    pool = numbers(1, 2, 10, 2, 32, dtype=dtype)
    assert decode_attention(torch.zeros(0, 3, 2, 32, dtype=dtype), None, *pool[0], none, none).shape == (0, 2, 32)
    picked, queries, out = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(0, 1, 32, dtype=dtype), torch.zeros(0, 9)
    steps = torch.zeros(4, dtype=torch.int64)
    alignment(pool, picked, queries, None, (none, none, none), steps, steps, torch.stack([steps, steps]), out, 10)
    empty = torch.zeros(0, 5, 8)
    assert snake(empty, torch.ones(8), torch.ones(8), None)[1].shape == empty.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_numbers_are_multiplied(dtype: torch.dtype) -> None:
    tiny = {torch.float32: 1e-40, torch.bfloat16: 1e-39, torch.float16: 6e-8}[dtype]
    x, weight = (tiny * numbers(6, 64).sign()).to(dtype), 1e4 * numbers(50, 64, seed=1).clamp(-2, 2)
    weight = weight.to(dtype)
    exact = F.linear(x.double(), weight.double())
    got = project(x, weight, None).double()
    assert float((got - exact).norm() / exact.norm()) < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_number_is_averaged(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x, weight = torch.full((6, 64), largest, dtype=dtype), torch.full((50, 64), 1 / 64, dtype=dtype)
    assert torch.equal(project(x, weight, None), torch.full((6, 50), largest, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_inference_and_with_gradients_are_multiplied_as_others(dtype: torch.dtype) -> None:
    x, weight = numbers(5, 64, dtype=dtype), numbers(50, 64, dtype=dtype, seed=1)
    wanted = project(x, weight, None)
    with torch.inference_mode():
        inside = x.clone()
        assert torch.equal(project(inside, weight, None), wanted)
    assert torch.equal(project(inside, weight, None), wanted)
    got = project(x.requires_grad_(), weight, None)
    assert not got.requires_grad
    assert torch.equal(got, wanted)


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [10, 17])
def test_a_row_attends_with_the_same_bits_whether_few_or_all_heads_are_a_piece_of_work(
    dtype: torch.dtype, heads: int
) -> None:
    rows, held, size = 13, 40, 32
    qkv = numbers(rows, 3, heads, size, dtype=dtype)
    keys, values = numbers(2, rows * held, heads, size, dtype=dtype, seed=1)
    start, position = held * torch.arange(rows), torch.arange(rows) * 3
    torch.set_num_threads(1)
    alone = torch.cat(
        [decode_attention(qkv[i, None], None, keys, values, start[i, None], position[i, None]) for i in range(rows)]
    )
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in (4 * threads - 1, 4 * threads, 4 * threads + 1):
            got = decode_attention(qkv[:count], None, keys, values, start[:count], position[:count])
            assert torch.equal(got, alone[:count]), f"{count} rows on {threads} threads"


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reading_is_torchs_and_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    count, room, size, longest = 7, 60, 32, 60
    pool = numbers(3, 2, 2 * count * room, 4, size, dtype=dtype)
    queries, picked = numbers(2 * count, 3, size, dtype=dtype, seed=1), torch.tensor([[2, 0], [0, 3], [2, 3]])
    slot, row = torch.randperm(count, generator=torch.Generator().manual_seed(0)), torch.arange(count)
    start = room * torch.arange(2 * count)
    prompt, step = 30 + torch.arange(count), 2 + 3 * torch.arange(count)
    text = torch.stack([3 + torch.arange(count), 20 + torch.arange(count)])

    def read(some: slice) -> Tensor:
        out = torch.zeros(len(slot[some]), len(Reading._fields))
        alignment(pool, picked, queries, None, (slot[some], row[some], start), prompt, step, text, out, longest)
        return out

    torch.set_num_threads(1)
    alone = torch.cat([read(slice(i, i + 1)) for i in range(count)])
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for end in (2, 5, count):
            assert torch.equal(read(slice(end)), alone[:end])
    for own, place, got in zip(slot.tolist(), start.tolist(), alone, strict=False):
        first, last = text[:, own].tolist()
        held = slice(place, place + int(prompt[own] + step[own]))
        query = queries[place // room].double() / size**0.5
        scores = torch.stack([pool[layer, 0, held, head].double() @ query[i] for i, (layer, head) in enumerate(picked)])
        attention = scores.softmax(1).mean(0)[first:last]
        reading = Reading(*got.tolist())
        assert reading.place == int(attention.argmax())
        assert reading.peak == pytest.approx(float(attention.max()), rel=1e-5)
        assert reading.mass == pytest.approx(float(attention.sum()), rel=1e-5)
