"""S3Gen on a GPU that is pretended: nothing between tokens and waveform waits for it, and what is captured can be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.s3gen import PreparedVoice, S3Gen, VocoderJob
from chatterbox_engine.s3gen.noise import Phase
from chatterbox_engine.synthesis.streaming import Span
from chatterbox_engine.synthesis.windows import synthesise, window
from chatterbox_engine.types import SAMPLES_PER_TOKEN, S3GenConditionals
from tests.conftest import CheckpointOf
from tests.pretend_cuda import PretendCuda, memory_of, pretend_cuda


@pytest.fixture
def cuda() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


@pytest.fixture
def s3gen(tiny: Checkpoint, cuda: PretendCuda) -> S3Gen:
    """On a stream of its own. Of the solver one step is run: the others are the same."""
    s3gen = S3Gen.from_state_dict(
        tiny.s3gen_state(), tiny.dims.s3gen, device=cuda.device, dtype=torch.bfloat16, cfm_steps=1
    )
    cuda.synchronize()
    own_stream(cuda.device)
    cuda.waits.clear()
    return s3gen


def voice(s3gen: S3Gen, tokens: int) -> PreparedVoice:
    dims = s3gen.dims
    return s3gen.prepare(
        S3GenConditionals(
            torch.zeros(tokens, dtype=torch.int32), torch.zeros(2 * tokens, dims.mel), torch.ones(dims.speaker_embed)
        )
    )


def tokens(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def test_nothing_between_tokens_and_waveform_waits_for_the_device(s3gen: S3Gen, cuda: PretendCuda) -> None:
    short, long = voice(s3gen, 9), voice(s3gen, 20)
    first = Span(0, 0, 10, 13, last=False)
    phases = [Phase(), Phase()]
    chunks = synthesise(s3gen, [window(tokens(13), short, n, first, phase) for n, phase in enumerate(phases)])
    second, all_of_it = Span(5, 10, 25, 28, last=False), Span.whole(15)
    windows = [window(tokens(23), short, 0, second, phases[0]), window(tokens(15), long, 7, all_of_it, None)]
    chunks += synthesise(s3gen, windows)
    assert not cuda.waits
    assert [len(wave) // SAMPLES_PER_TOKEN for wave in chunks] == [13, 13, 23, 15]
    assert {tensor.device for tensor in chunks} == {cuda.device}
    assert {phase.cycles.device for phase in phases if phase.cycles is not None} == {cuda.device}
    cuda.synchronize()


@torch.inference_mode()
def test_what_is_captured_reads_static_memory_and_writes_its_own(s3gen: S3Gen, cuda: PretendCuda) -> None:
    graphs = Graphs(cuda.device, enabled=True)
    s3gen.capture(graphs, [(2, 20, 15)])
    assert len(cuda.graphs) == len(graphs) == 2
    assert not [graph for graph in cuda.graphs if any(write for _, write in graph.uses)]
    buckets = [bucket for half in (s3gen._to_mel, s3gen._to_wave) for bucket in half._buckets.values()]
    state, asked = memory_of(*buckets), cuda.tick
    jobs = [VocoderJob(tokens(5), voice(s3gen, 9), 1), VocoderJob(tokens(15), voice(s3gen, 20), 2)]
    assert [len(wave) // SAMPLES_PER_TOKEN for wave in synthesise(s3gen, jobs)] == [5, 15]
    assert cuda.tick - asked < 300, "the graphs are replayed"
    assert memory_of(*buckets) == state
    assert not cuda.waits
    cuda.synchronize()


@pytest.mark.full
@pytest.mark.parametrize("name", ["tiny", "tiny-turbo"])  # with guidance, and MeanFlow; the other families have these
def test_the_flow_by_our_kernels_gives_a_cpus_mel(checkpoint_of: CheckpointOf, name: str) -> None:
    command = [sys.executable, "-m", "tests.unit.interpreted_flow", checkpoint_of(name).path]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    float32, float16 = map(float, done.stdout.split())
    assert float32 < 1e-5, f"{float32:.2e}"
    assert float16 < 2e-2, f"{float16:.2e}"
