"""T3 with int8 weights against itself in float32, and against itself in other batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.kernels.linear import linear
from chatterbox_engine.t3.quantize import quantize_weight
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.types import SamplingParams
from tests.conftest import CheckpointOf
from tests.fidelity.t3_loop import CPU, SLOTS, Request, Served, relative_error, teacher_forced


@pytest.fixture(
    scope="module",
    params=[
        "tiny",
        "tiny-turbo",
        "tiny-flash",
        pytest.param("full", marks=pytest.mark.full),
        pytest.param("full-nano", marks=pytest.mark.full),
    ],
)
def checkpoint(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Checkpoint:
    return checkpoint_of(request.param)


@pytest.fixture(scope="module")
def int8(checkpoint: Checkpoint) -> Served:
    return Served.of(checkpoint, quantization="int8")


def greedy(served: Served) -> list[Request]:
    """Greedy requests of different lengths that arrive while others are active."""
    params = SamplingParams(temperature=0.0)
    return [served.supported(Request(9 + 8 * i, params, seed=i, max_tokens=30, arrives=4 * i)) for i in range(SLOTS)]


def test_int8_logits_stay_near_float32_and_the_best_token_is_the_same_but_for_ties(
    checkpoint: Checkpoint, int8: Served
) -> None:
    text = Request(40, SamplingParams(), seed=3, max_tokens=1).text()
    forced = torch.randint(0, 6561, (24,), generator=torch.Generator().manual_seed(2))
    exact = teacher_forced(Served.of(checkpoint).model, int8.voice, text, forced)
    rounded = teacher_forced(int8.model, int8.voice, text, forced)
    error = relative_error(rounded, exact)
    assert error < 2e-2, f"{error:.2e}"
    # where another token is preferred, it was float32's best one but for a twentieth of the logits' spread
    best, chosen = exact.max(dim=-1).values, exact.gather(-1, rounded.argmax(dim=-1, keepdim=True))[..., 0]
    behind = (best - chosen) / exact.std(dim=-1)
    assert float(behind.max()) < 0.05, f"{float(behind.max()):.2e}"
    assert float((behind == 0).float().mean()) >= 0.9


def test_greedy_tokens_of_int8_do_not_depend_on_the_batch(checkpoint: Checkpoint, int8: Served) -> None:
    together = greedy(int8)
    int8.loop(cache_len=640).run(together)
    lonely = int8.loop(slots=1, cache_len=640)
    for request in together:
        alone = replace(request, arrives=0, tokens=[], ending=None, place=None, prompt=None)
        lonely.run([alone])
        assert request.ending in ("stop", "length")
        assert request.tokens == alone.tokens


@pytest.mark.full
def test_compilation_changes_no_tokens_of_int8_but_at_an_edge(int8: Served) -> None:
    """Rows are rounded to bfloat16 there, so a change of the last bit by the compiler can become one of the eighth."""
    expected, got = greedy(int8), greedy(int8)
    int8.loop(cache_len=640).run(expected)
    compiled = int8.loop(cache_len=640)
    compiled.runner = Runner(
        int8.model, compiled.cache, SLOTS, family=int8.family, graphs=Graphs(CPU, enabled=False), compile_mode="default"
    )
    compiled.run(got)
    same = sum(a.tokens == b.tokens for a, b in zip(got, expected, strict=True))
    assert same >= len(expected) - 1, f"{same} of {len(expected)} requests have the same tokens"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_an_int8_product_has_the_same_bits_regardless_of_the_batch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(96, 64, generator=generator).to(dtype), torch.randn(37, 64, generator=generator).to(dtype)
    bias = torch.randn(96, generator=generator).to(dtype)
    quantized = quantize_weight(weight, "int8")
    whole = linear(x, quantized, bias)
    for rows in (slice(0, 1), slice(5, 8), slice(20, 37)):
        assert torch.equal(linear(x[rows], quantized, bias), whole[rows])
    as_prompt = linear(x[None], quantized, bias)[0]  # torchao's own product
    assert relative_error(whole.float(), as_prompt.float()) < 5e-3


@pytest.mark.parametrize(("how", "bound"), [("int8", 1e-2), ("float8", 4e-2)])
def test_a_matrix_stays_near_itself_and_rows_of_zeros_stay_zeros(how: str, bound: float) -> None:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[3] = 0.0
    again = quantize_weight(weight, how).dequantize()
    error = relative_error(again.float(), weight.float())
    assert error < bound, f"{error:.2e}"
    assert not again[3].any()
