"""Flash's T3 on a GPU that is pretended: every way that its runner takes there, and what it makes the host wait for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3 import prompts
from chatterbox_engine.t3.block_runner import BlockRunner
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.flash import FlashT3
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.types import SamplingParams
from tests.conftest import CheckpointOf
from tests.fidelity.t3_loop import Served
from tests.pretend_cuda import PretendCuda, memory_of, pretend_cuda

ROOM = 1024  # positions of a row
GUIDED = SamplingParams(cfg_weight=1.0)
UNGUIDED = SamplingParams(cfg_weight=0.0, temperature=0.0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    monkeypatch.setattr(prompts, "PREFILL_LENGTHS", prompts.PREFILL_LENGTHS[:1])  # the others are captured alike
    with pretend_cuda() as device:
        yield device


def prompt(slot: int, length: int, sampling: SamplingParams, max_tokens: int) -> Prompt:
    extents = tuple(Extent(ROOM * (2 * slot + row), ROOM) for row in range(2 if sampling.cfg_weight else 1))
    text = torch.ones(length, dtype=torch.int64)
    return Prompt(slot, extents, text, sampling, torch.zeros(max_tokens + 1), seed=slot)


@pytest.mark.parametrize(
    ("graphs", "dtype", "how"),
    [
        (True, torch.bfloat16, "none"),
        (False, torch.bfloat16, "none"),
        (True, torch.float16, "none"),
        pytest.param(True, torch.bfloat16, "int8", marks=pytest.mark.full),
        pytest.param(True, torch.bfloat16, "float8", marks=pytest.mark.full),
    ],
)
def test_no_pass_waits_for_more_than_the_tokens(
    checkpoint_of: CheckpointOf, cuda: PretendCuda, graphs: bool, dtype: torch.dtype, how: str
) -> None:
    served = Served.of(checkpoint_of("tiny-flash"), cuda.device, dtype=dtype, quantization=how)
    model = served.model
    assert isinstance(model, FlashT3)
    cache = KVCache(model.dims, 8 * ROOM, device=cuda.device, dtype=model.dtype)
    runner = BlockRunner(model, cache, 4, graphs=Graphs(cuda.device, enabled=graphs))
    cuda.synchronize()
    own_stream(cuda.device)
    runner.warm_up(lambda _line: None)
    assert (len(cuda.graphs) > 0) == graphs
    state = memory_of(runner, runner._prompts, cache)
    cuda.waits.clear()

    running: list[Prompt] = []
    lengths: list[list[int]] = []
    prefix = [model.prefix(served.voice, 0.5)]
    # prompts beside each other, one that joins, and one that is longer than what is captured
    groups = (
        [prompt(0, 20, GUIDED, 40), prompt(1, 9, UNGUIDED, 18)],
        [prompt(2, 20, GUIDED, 9), prompt(3, 300, GUIDED, 32)],
    )
    for group in groups:
        assert runner.prefill(group, prefix * len(group)).read() == [[]] * len(group)
        running += group
        # a device without values gives zeros, so that every pass finishes its blocks
        passes = [runner.decode(running), runner.decode(running)]
        lengths += [[len(tokens) for tokens in each.read()] for each in passes]
    assert lengths == [[16, 16], [16, 2], [8, 0, 9, 16], [0, 0, 0, 16]]
    assert not cuda.waits
    assert memory_of(runner, runner._prompts, cache) == state, "graphs use memory that stays where it is"
    assert {memory for graph in cuda.graphs for memory, write in graph.uses if write} <= state
