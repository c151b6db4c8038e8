"""The whole engine on a GPU that is pretended: its threads, their streams, and what they hand each other."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from chatterbox_engine import assemble
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.config import Config
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.t3 import prompts
from chatterbox_engine.types import SynthesisChunk, SynthesisRequest, SynthesisResult
from tests.conftest import CheckpointOf
from tests.pretend_cuda import PretendCuda, pretend_cuda

WAIT = 120.0  # seconds until a test that would hang fails instead


def config_of(checkpoint: Checkpoint, folder: Path, **changes: Any) -> Config:
    """Of the flow one step is run, and nothing together: as much more would be captured alike."""
    settings = {"dtype": "bfloat16", "max_slots": 2, "cfm_steps": 1, "vocoder_batch": 1, "watermark": False}
    store = str(folder / "voices.sqlite")
    return Config(checkpoint=str(checkpoint.path), device="cuda", voice_store=store, **(settings | changes))


@contextmanager
def started(config: Config) -> Iterator[tuple[Engine, PretendCuda]]:
    """A warm engine, on a GPU that is so small that S3Gen captures one size."""
    few = mock.patch.object(prompts, "PREFILL_LENGTHS", prompts.PREFILL_LENGTHS[:1])  # the others are captured alike
    with pretend_cuda(540_000_000, free=80 << 30) as cuda, few:
        engine = assemble.build(config)
        engine.start()
        cuda.waits.clear()
        yield engine, cuda
        engine.close()


def whole(engine: Engine) -> SynthesisResult:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.submit(request(engine), answers.put)
    answer = answers.get(timeout=WAIT)
    assert isinstance(answer, SynthesisResult), answer
    return answer


def streamed(engine: Engine) -> list[SynthesisChunk]:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.stream(request(engine), ChunkPolicy(first=5, chunk=5), answers.put)
    chunks: list[SynthesisChunk] = []
    while not chunks or not chunks[-1].last:
        chunks.append(answers.get(timeout=WAIT))
        assert isinstance(chunks[-1], SynthesisChunk), chunks[-1]
    return chunks


def request(engine: Engine) -> SynthesisRequest:
    return SynthesisRequest(text="Hello.", seed=1, sampling=engine.family.sampling, max_seconds=0.8)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "graphs"), [("tiny", True), ("tiny-turbo", True), ("tiny-flash", True), ("tiny", False)]
)
def test_the_engine_waits_for_nothing_but_tokens_and_samples(
    checkpoint_of: CheckpointOf, tmp_path: Path, name: str, graphs: bool
) -> None:
    with started(config_of(checkpoint_of(name), tmp_path, cuda_graphs=graphs)) as (engine, cuda):
        answer, chunks = whole(engine), streamed(engine)
        # one download for each batch that was vocoded: the whole answer's, and each chunk's
        assert 0 < len(cuda.waits) <= 1 + len(chunks)
        assert {wait.partition(" in ")[0] for wait in cuda.waits} == {"aten._to_copy.default"}
        assert (len(cuda.graphs) > 0) == graphs
    assert len(chunks) > 2
    assert sum(len(chunk.samples) for chunk in chunks) == len(answer.samples)
