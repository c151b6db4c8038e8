"""The runner's requirements for CUDA graphs, with values: padded inputs in static memory. On a GPU: `test_cuda_t3`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chatterbox_engine.kernels import linear
from chatterbox_engine.t3.prompts import PREFILL_LENGTHS, Prompts
from chatterbox_engine.types import SamplingParams
from tests.conftest import CheckpointOf
from tests.fidelity.t3_loop import SLOTS, Request, Served, relative_error, runner_of, teacher_forced
from tests.unit.static import PretendGraphs


@pytest.fixture(scope="module", params=["tiny", "tiny-turbo", "tiny-flash"])
def served(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Served:
    return Served.of(checkpoint_of(request.param))


@pytest.fixture(scope="module", params=["tiny", "tiny-turbo"])
def stepping(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Served:
    """Models that draw a token at a time."""
    return Served.of(checkpoint_of(request.param))


def request(length: int, arrives: int, cfg_weight: float, prompt_tokens: int | None = None) -> Request:
    sampling = SamplingParams(cfg_weight=cfg_weight)
    return Request(length, sampling, seed=length, max_tokens=20, arrives=arrives, prompt_tokens=prompt_tokens)


@pytest.mark.parametrize(
    "wanted",
    [
        [(10 + 9 * n, 3 * n, [0.5, 0.0, 1.0][n % 3]) for n in range(9)],
        [(200, 0, 0.5), (20, 40, 0.0)],  # a long prompt, then a short one whose bucket has rows to spare
        [(150, 0, 0.5)] * 4 + [(20, 40, 0.5)] * 3,
        [(40, 0, 0.5, 20), (20, 0, 0.5), (60, 0, 0.0, 70), (20, 1, 0.5, 20)],  # voices of longer and shorter clips
    ],
)
def test_padded_buckets_over_static_buffers_change_no_tokens(served: Served, wanted: list[tuple[Any, ...]]) -> None:
    expected, got = ([served.supported(request(*w)) for w in wanted] for _ in range(2))
    served.loop(cache_len=512).run(expected)
    padded = served.loop(cache_len=512)
    padded.runner = runner_of(served.family, served.model, padded.cache, SLOTS, PretendGraphs())
    padded.runner.warm_up(lambda _line: None)
    padded.run(got)
    assert [r.tokens for r in got] == [r.tokens for r in expected]


@pytest.mark.parametrize("length", PREFILL_LENGTHS)
def test_the_mask_of_a_captured_prefill_suits_the_memory_efficient_kernel(served: Served, length: int) -> None:
    """Others it copies in every layer (aten/src/ATen/native/transformers/attention.cpp, `preprocess_mask`)."""
    cache = served.loop().cache
    mask = Prompts(served.model, cache, PretendGraphs()).empty(2, length).context(cache).mask
    assert all(stride % 8 == 0 for stride in mask.stride()[:-1])


def test_products_that_add_in_place_change_nothing_that_is_read_later(
    stepping: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Request(text_length=8, sampling=SamplingParams(), seed=3, max_tokens=1).text()
    forced = torch.randint(0, 6561, (9,), generator=torch.Generator().manual_seed(1))
    plain = teacher_forced(stepping.model, stepping.voice, text, forced)
    with monkeypatch.context() as patch:
        patch.setattr(linear, "_plain_on_cuda", lambda _weight: True)  # torch's products as on a GPU, in float32
        patch.setattr(linear, "suits_cpu_kernel", lambda _weight: False)
        stepping.model.prepare()
    on_gpu = teacher_forced(stepping.model, stepping.voice, text, forced)
    stepping.model.prepare()
    error = relative_error(on_gpu, plain)
    assert 0 < error < 1e-3, f"{error:.2e}"  # a CPU's GELU within the product is another form than the tanh one
