"""What the vocoder takes together and in which order, what it captures, and where a stream's source goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from chatterbox_engine.errors import RequestError
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.s3gen import SourceNoise
from chatterbox_engine.synthesis.cores import Cores
from chatterbox_engine.synthesis.jobs import Chunk, Job
from chatterbox_engine.synthesis.streaming import ChunkPolicy, Cursor, Span
from chatterbox_engine.synthesis.vocoder import Vocoder
from chatterbox_engine.types import Samples
from tests.unit.engine_fakes import CPU, FakeS3Gen, chunk, job
from tests.unit.static import PretendGraphs

NO_GRAPHS = Graphs(CPU, enabled=False)
BATCH = 3


class UnderWay:
    """The requests that have not ended: all but those that are named."""

    decoding = False

    def __init__(self, ended: Sequence[Job] = ()) -> None:
        self._ended = ended

    def __contains__(self, job: Job) -> bool:
        return job not in self._ended


def make_vocoder(s3gen: FakeS3Gen, graphs: Graphs = NO_GRAPHS, memory: int = 1 << 34) -> Vocoder:
    return Vocoder(s3gen, graphs=graphs, batch=BATCH, delay=0.0, memory=memory, cores=Cores())


def vocode(s3gen: FakeS3Gen, chunks: Sequence[Chunk], ended: Sequence[Job] = ()) -> list[Chunk]:
    """Queues all chunks at once; returns them in the order in which their waveforms came."""
    return [chunk for chunk, _ in vocode_timed(s3gen, chunks, ended)]


def vocode_timed(s3gen: FakeS3Gen, chunks: Sequence[Chunk], ended: Sequence[Job] = ()) -> list[tuple[Chunk, float]]:
    """The same with the seconds that came along."""
    done: list[tuple[Chunk, float]] = []

    def take(chunk: Chunk, _wave: Samples, seconds: float) -> None:
        done.append((chunk, seconds))

    def fail(_chunk: Chunk, error: RequestError) -> None:
        pytest.fail(str(error))

    vocoder = make_vocoder(s3gen)
    for each in chunks:
        vocoder.put(each)
    vocoder.close()
    vocoder.run(UnderWay(ended), done=take, failed=fail)
    return done


def test_first_chunks_are_vocoded_alone_and_before_everything_else() -> None:
    s3gen = FakeS3Gen()
    whole = [chunk(job()) for _ in range(3)]
    first = [chunk(job(stream=True), number=0) for _ in range(2)]
    cancelled, later = chunk(job()), chunk(job(stream=True), number=1)
    queued = [whole[0], first[0], cancelled, later, whole[1], first[1], whole[2]]
    done = vocode(s3gen, queued, ended=[cancelled.job])
    assert s3gen.batches == [2, 2, 2]
    assert done == [*first, whole[0], later, *whole[1:]]


def test_chunks_of_one_stream_are_never_in_one_batch_and_stay_in_order() -> None:
    s3gen = FakeS3Gen()
    one, two = job(stream=True), job(stream=True)
    ones, twos = ([chunk(it, number=number) for number in range(1, 4)] for it in (one, two))
    whole = chunk(job())
    done = vocode(s3gen, [*ones[:2], twos[0], ones[2], twos[1], whole])
    assert s3gen.batches == [3, 2, 1]
    assert done == [ones[0], twos[0], whole, ones[1], twos[1], ones[2]]


def test_utterances_of_a_whole_answer_share_a_batch_whose_seconds_count_once() -> None:
    s3gen, request, other = FakeS3Gen(), job(segments=2), job()
    done = vocode_timed(s3gen, [chunk(request), chunk(other), chunk(request, segment=1)])
    assert s3gen.batches == [3]
    (_, first), (_, others), (_, again) = done
    assert first == others > 0
    assert again == 0


class Humming(FakeS3Gen):
    """Has a pitch of a quarter of a cycle for each mel frame, and notes the phases of its source."""

    def __init__(self) -> None:
        super().__init__()
        self.cycles: list[list[float]] = []

    def pitch(self, mel: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
        return torch.full(mel.shape[:2], 0.25 * 24_000 / 480)

    def vocode(self, mel: torch.Tensor, frames: Sequence[int], source: Any) -> torch.Tensor:
        assert isinstance(source, SourceNoise)
        self.cycles.append([round(float(phase) / (2 * math.pi) % 1, 3) for phase in source.phases[:, 0]])
        return super().vocode(mel, frames, source)


def test_the_source_of_a_queued_chunk_goes_on_where_the_one_before_ended() -> None:
    s3gen, one, two = Humming(), job(stream=True), job(stream=True)
    spans = [Span(0, 0, 1, 2, last=False), Span(0, 1, 3, 4, last=False)]  # a token is half a cycle
    chunks = [chunk(it, number=number, span=span) for it in (one, two) for number, span in enumerate(spans)]
    vocode(s3gen, chunks)
    # two first chunks; then two windows that begin at the start of their utterances, so in the phase of that
    assert s3gen.cycles == [[0, 0], [0, 0]]
    spans = [Span(0, 0, 3, 4, last=False), Span(3, 3, 5, 5, last=True)]  # now a window that begins with its chunk
    vocode(s3gen, [chunk(one, number=number, span=span) for number, span in enumerate(spans)])
    assert s3gen.cycles[2:] == [[0], [0.5]]


def test_nothing_is_kept_of_a_stream_that_ended_early() -> None:
    vocoder = make_vocoder(FakeS3Gen())
    vocoder.put(chunk(job(stream=True), number=0, span=Span(0, 0, 2, 4, last=False)))
    vocoder.close()
    vocoder.run(UnderWay(), done=lambda *_: None, failed=lambda *_: None)
    assert not vocoder._phases


def test_a_batch_that_memory_does_not_hold_is_vocoded_in_parts() -> None:
    s3gen = FakeS3Gen()
    s3gen.room = 8  # two of the chunks
    done = vocode(s3gen, [chunk(job()) for _ in range(3)])
    assert s3gen.batches == [1, 2]
    assert len(done) == 3


@pytest.mark.parametrize("prompt_tokens", [250, 75])
def test_what_is_captured_covers_streams_and_stays_within_its_share_of_memory(prompt_tokens: int) -> None:
    s3gen = FakeS3Gen()
    s3gen.prompt_tokens = prompt_tokens
    make_vocoder(s3gen, graphs=PretendGraphs(), memory=1 << 30).warm_up(lambda _line: None)
    sizes = s3gen.captured
    window, cursor, decoded = set(), Cursor(ChunkPolicy()), 900
    while (span := cursor.take(decoded, complete=False)) is not None:
        window.add(span.tokens)
    assert {(1, prompt_tokens, tokens) for tokens in window} <= set(sizes)
    assert all(480 * rows * (250 + tokens) ** 2 <= (1 << 30) / 4 for rows, _, tokens in sizes)  # HiFT sees no prompt
    assert max(rows for rows, _, _ in sizes) == BATCH
