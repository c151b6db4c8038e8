"""What CUDA graphs need of the runner, shown without a GPU: static padded inputs, and nothing copied from the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chatterbox_engine.assemble import BACKBONES
from chatterbox_engine.attention import Context
from chatterbox_engine.kv_cache import KVCache
from chatterbox_engine.runner import PREFILL_LENGTHS, Runner
from chatterbox_engine.types import SamplingParams
from tests.conftest import CheckpointOf
from tests.fidelity.t3_loop import SLOTS, Request, Served
from tests.unit.static import HostCopies, PretendGraphs


@pytest.fixture(scope="module", params=["tiny", "tiny-turbo"])
def served(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Served:
    return Served.of(checkpoint_of(request.param))


def request(length: int, arrives: int, cfg_weight: float, prompt_tokens: int | None = None) -> Request:
    sampling = SamplingParams(cfg_weight=cfg_weight)
    return Request(length, sampling, seed=length, max_tokens=12, arrives=arrives, prompt_tokens=prompt_tokens)


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
    expected, got = ([served.heeded(request(*w)) for w in wanted] for _ in range(2))
    served.loop(cache_len=512).run(expected)
    padded = served.loop(cache_len=512)
    padded.runner = Runner(served.model, padded.cache, SLOTS, family=served.family, graphs=PretendGraphs())
    padded.runner.warm_up(lambda _line: None)
    padded.run(got)
    assert [r.tokens for r in got] == [r.tokens for r in expected]


@pytest.mark.parametrize("length", PREFILL_LENGTHS)
def test_the_mask_of_a_captured_prefill_suits_the_memory_efficient_kernel(served: Served, length: int) -> None:
    """Others it copies in every layer (aten/src/ATen/native/transformers/attention.cpp, `preprocess_mask`)."""
    runner = Runner(served.model, served.loop().cache, SLOTS, family=served.family, graphs=PretendGraphs())
    _, places = runner._prompt_tensors(2, length)
    mask = Context.of(runner.cache, *places, length=length, reach=runner._captured_reach(length)).mask
    assert all(stride % 8 == 0 for stride in mask.stride()[:-1])


@pytest.mark.parametrize("name", ["tiny", "tiny-turbo"])
def test_no_captured_function_copies_from_the_host(name: str, checkpoint_of: CheckpointOf) -> None:
    device = torch.device("cuda:0")  # its tensors are fake ones
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    checkpoint = checkpoint_of(name)
    dims = checkpoint.dims.t3
    state = {name: mode.from_tensor(value) for name, value in checkpoint.t3_state().items()}
    with torch.no_grad(), mode:
        model = BACKBONES[type(dims)].from_state_dict(state, dims, device=device, dtype=torch.bfloat16)
        cache = KVCache(dims, 4096, device=device, dtype=model.dtype)
        runner = Runner(model, cache, 8, family=checkpoint.family, graphs=PretendGraphs())
        for what, function in {
            "decode": lambda: runner._decode_rows(8),
            "prefill": lambda: runner._prefill_rows(*runner._prompt_tensors(8, 64), runner._captured_reach(64)),
            "sample": lambda: runner._sample_rows(4, False),
            "sample with top_p": lambda: runner._sample_rows(4, True),
        }.items():
            with HostCopies() as copies:
                function()
            assert not copies.found, f"{what}: {copies.found}"
