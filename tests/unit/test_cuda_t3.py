"""T3 on a GPU that is pretended: every way that the runner takes there, and what it makes the host wait for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.random_checkpoint import TINY
from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3 import prompts
from chatterbox_engine.t3.extents import Extent
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.t3.runner import Drawn, Runner
from chatterbox_engine.types import SamplingParams
from tests.conftest import CheckpointOf
from tests.fidelity.t3_loop import Served
from tests.pretend_cuda import PretendCuda, memory_of, pretend_cuda

ROOM = 1024  # positions of a row
PLAIN = SamplingParams()
UNGUIDED = SamplingParams(cfg_weight=0.0, top_p=0.9)
GREEDY = SamplingParams(temperature=0.0, top_k=3)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    monkeypatch.setattr(prompts, "PREFILL_LENGTHS", prompts.PREFILL_LENGTHS[:1])  # the others are captured alike
    with pretend_cuda() as device:
        yield device


class T3:
    """A runner as the engine makes it, on a stream of its own."""

    def __init__(
        self,
        cuda: PretendCuda,
        checkpoint: Checkpoint,
        *,
        graphs: bool,
        dtype: torch.dtype = torch.bfloat16,
        **options: Any,
    ) -> None:
        self.served = Served.of(checkpoint, cuda.device, dtype=dtype, **options)
        model = self.served.model
        cache = KVCache(model.dims, 8 * ROOM, device=cuda.device, dtype=model.dtype)
        captured = Graphs(cuda.device, enabled=graphs)
        self.runner = Runner(
            model, cache, 4, family=self.served.family, graphs=captured, heads=checkpoint.dims.alignment_heads
        )
        cuda.synchronize()
        own_stream(cuda.device)
        self.runner.warm_up(lambda _line: None)

    def prompt(self, slot: int, length: int, sampling: SamplingParams, **options: bool) -> Prompt:
        family = self.served.family
        rows = 2 if family.rows == 2 and sampling.cfg_weight else 1
        extents = tuple(Extent(ROOM * (2 * slot + row), ROOM) for row in range(rows))
        return Prompt(slot, extents, torch.ones(length, dtype=torch.int64), sampling, torch.rand(20), **options)

    def speak(self, *groups: Sequence[Prompt]) -> list[Drawn]:
        """Each group joins the ones before, then all of them take two steps."""
        running: list[Prompt] = []
        drawn: list[Drawn] = []
        for group in groups:
            prefixes = [self.served.model.prefix(self.served.voice, 0.5) for _ in group]
            drawn.append(self.runner.prefill(group, prefixes))
            running += group
            drawn += [self.runner.decode(running), self.runner.decode(running)]
        return drawn

    @property
    def state(self) -> set[int]:
        batches = self.runner._prefill_batch, self.runner._decode_batch
        runner = self.runner
        return memory_of(runner, runner._prompts, runner.slots, runner.cache, runner.alignment, *batches)


@pytest.mark.parametrize(
    ("name", "graphs"),
    [("tiny", True), ("tiny-turbo", True), ("tiny-turbo", False), pytest.param("tiny", False, marks=pytest.mark.full)],
)
def test_no_step_waits_for_the_device(checkpoint_of: CheckpointOf, cuda: PretendCuda, name: str, graphs: bool) -> None:
    t3 = T3(cuda, checkpoint_of(name), graphs=graphs)
    assert (len(cuda.graphs) > 0) == graphs
    state = t3.state
    cuda.waits.clear()
    # prompts beside each other, one that joins, and one that is longer than what is captured
    drawn = t3.speak(
        [t3.prompt(0, 20, PLAIN), t3.prompt(1, 9, UNGUIDED)], [t3.prompt(2, 20, GREEDY)], [t3.prompt(3, 300, PLAIN)]
    )
    assert not cuda.waits
    assert [tokens.read() for tokens in drawn] == [[[0]] * count for count in (2, 2, 2, 1, 3, 3, 1, 4, 4)]
    assert t3.state == state, "graphs use memory that stays where it is"
    assert {memory for graph in cuda.graphs for memory, write in graph.uses if write} <= state


@pytest.mark.parametrize("name", ["tiny", "tiny-turbo"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_of_few_rows_is_made_of_fused_kernels(
    checkpoint_of: CheckpointOf, cuda: PretendCuda, name: str, dtype: torch.dtype
) -> None:
    """torch's operators for products, norms, attention and sampling are several times slower there."""
    t3 = T3(cuda, checkpoint_of(name), graphs=False, dtype=dtype)
    running = [t3.prompt(0, 9, PLAIN), t3.prompt(1, 9, UNGUIDED)]
    t3.runner.prefill(running, [t3.served.model.prefix(t3.served.voice, 0.5) for _ in running])
    cuda.operators.clear()
    before = cuda.launches
    t3.runner.decode(running).read()
    layers = t3.served.model.dims.layers
    assert cuda.launches - before == 5 * layers + 2  # four products and the attention; the head and the sampling
    slow = ("mm", "norm", "softmax", "attention", "sort", "cumsum", "argmax")
    assert not [name for name in cuda.operators if any(part in name for part in slow)]


@pytest.mark.parametrize(("name", "graphs"), [("tiny", True), ("tiny-turbo", False)])
def test_reading_where_t3_looks_waits_for_nothing_and_takes_two_kernels(
    checkpoint_of: CheckpointOf, cuda: PretendCuda, name: str, graphs: bool
) -> None:
    t3 = T3(cuda, checkpoint_of(name), graphs=graphs)
    state = t3.state
    cuda.waits.clear()
    unread, read = t3.prompt(0, 20, PLAIN), t3.prompt(1, 9, UNGUIDED, aligned=True, holding=True)
    drawn = t3.speak([unread], [read])
    assert not cuda.waits
    assert [len(step.readings()) for step in drawn if step.read()] == [0, 0, 0, 0, 2, 2]
    assert t3.state == state, "graphs use memory that stays where it is"
    assert {memory for graph in cuda.graphs for memory, write in graph.uses if write} <= state
    launches = []
    for running in ([unread], [read]):
        before = cuda.launches
        step = t3.runner.decode(running)
        step.read()
        step.readings()
        launches.append(cuda.launches - before)
    assert launches[1] - launches[0] == (0 if graphs else 2)


@pytest.mark.full
def test_logits_in_float16_by_our_kernels_stay_near_float32s(checkpoint_of: CheckpointOf) -> None:
    folders = [checkpoint_of(name).path for name in TINY]
    command = [sys.executable, "-m", "tests.unit.interpreted_t3", *folders]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors = dict(zip(TINY, map(float, done.stdout.split()), strict=True))
    assert max(errors.values()) < 2e-2, errors


@pytest.mark.full
@pytest.mark.parametrize("how", ["int8", "float8"])
@pytest.mark.parametrize("name", ["tiny", "tiny-turbo"])
def test_no_step_of_a_quantised_model_waits_for_the_device(
    checkpoint_of: CheckpointOf, cuda: PretendCuda, name: str, how: str
) -> None:
    t3 = T3(cuda, checkpoint_of(name), graphs=True, quantization=how)
    cuda.waits.clear()
    drawn = t3.speak([t3.prompt(0, 20, PLAIN), t3.prompt(1, 300, UNGUIDED)])
    assert not cuda.waits
    assert [tokens.read() for tokens in drawn] == [[[0], [0]]] * 3
