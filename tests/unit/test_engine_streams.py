"""Streams through the engine: order, endings, cancellation, the audio of the whole answer. Fakes for networks."""

from __future__ import annotations

import queue
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_engine.errors import Cancelled, DeadlineExceeded, EngineFailed, Overloaded, RequestError
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.synthesis.streaming import ChunkPolicy, Cursor, Span
from chatterbox_engine.synthesis.vocoder import Piece, Vocoder
from chatterbox_engine.synthesis.windows import Phase
from chatterbox_engine.types import SAMPLES_PER_TOKEN, SynthesisChunk, SynthesisRequest, SynthesisResult
from tests.unit.engine_fakes import WAIT, FakeEngine, FakeS3Gen
from tests.unit.static import PretendGraphs

NO_GRAPHS = Graphs(torch.device("cpu"), enabled=False)
SENTENCE = "This is a sentence of about fifty characters, is it? "


class Listener:
    """Receives a stream's chunks."""

    def __init__(self) -> None:
        self._received: queue.SimpleQueue[SynthesisChunk | RequestError] = queue.SimpleQueue()
        self.put = self._received.put

    def take(self) -> SynthesisChunk | RequestError:
        return self._received.get(timeout=WAIT)

    def take_all(self) -> list[SynthesisChunk | RequestError]:
        """Everything up to the end."""
        taken = [self.take()]
        while isinstance(taken[-1], SynthesisChunk) and not taken[-1].last:
            taken.append(self.take())
        return taken

    @property
    def empty(self) -> bool:
        return self._received.empty()


def stream(fake: FakeEngine, text: str, *, policy: ChunkPolicy | None = None, **changes: Any) -> tuple[int, Listener]:
    listener = Listener()
    request = SynthesisRequest(**{"text": text, "seed": 1, **changes})
    return fake.engine.stream(request, policy or ChunkPolicy(), listener.put), listener


def chunks_of(listener: Listener) -> list[SynthesisChunk]:
    taken = listener.take_all()
    assert all(isinstance(chunk, SynthesisChunk) for chunk in taken), taken
    return [chunk for chunk in taken if isinstance(chunk, SynthesisChunk)]


@pytest.mark.parametrize("text", ["A.", "x" * 12, "x" * 13, "x" * 250, SENTENCE * 12], ids=lambda text: str(len(text)))
def test_a_stream_is_the_whole_answer_in_chunks(text: str) -> None:
    with FakeEngine() as fake:
        fake.submit(text)
        whole = fake.answers.take()
        chunks = chunks_of(stream(fake, text)[1])
    assert isinstance(whole, SynthesisResult)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert np.concatenate([chunk.speech_tokens for chunk in chunks]).tolist() == whole.speech_tokens.tolist()
    np.testing.assert_allclose(np.concatenate([chunk.samples for chunk in chunks]), whole.samples, atol=1e-7)
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    stats = chunks[-1].stats
    assert stats is not None
    assert set(whole.stats) | {"chunks"} == set(stats)
    assert (stats["tokens"], stats["chunks"]) == (whole.stats["tokens"], len(chunks))
    assert stats["audio_seconds"] == whole.stats["audio_seconds"]


def test_the_first_chunk_comes_before_the_utterance_is_decoded() -> None:
    with FakeEngine() as fake:
        fake.runner.hold_from = 20
        fake.runner.gate.clear()
        _, listener = stream(fake, "x" * 200)
        first = listener.take()
        assert listener.empty
        fake.runner.gate.set()
        listener.take_all()
    assert isinstance(first, SynthesisChunk)
    assert len(first.speech_tokens) == ChunkPolicy().first


def test_a_stream_that_stops_at_once_gets_one_empty_last_chunk() -> None:
    with FakeEngine() as fake:
        fake.engine._parts.text.encode = lambda text, language: []  # type: ignore[method-assign]
        chunks = chunks_of(stream(fake, "Hm.")[1])
    assert [(len(chunk.samples), len(chunk.speech_tokens), chunk.last) for chunk in chunks] == [(0, 0, True)]


def test_streams_and_whole_answers_share_the_engine_and_each_has_its_own_audio() -> None:
    texts = ["x" * length for length in (3, 40, 41, 90, 150, 222)]
    with FakeEngine(max_slots=3) as fake:
        fake.runner.gate.clear()
        listeners = [stream(fake, text)[1] for text in texts]
        for text in texts:
            fake.submit(text)
        fake.runner.gate.set()
        streamed = [np.concatenate([chunk.samples for chunk in chunks_of(it)]) for it in listeners]
        whole = {len(r.samples): r.samples for r in fake.answers.take_all(6) if isinstance(r, SynthesisResult)}
    assert len(whole) == 6
    for samples in streamed:
        np.testing.assert_allclose(samples, whole[len(samples)], atol=1e-7)


def test_a_cancelled_stream_ends_once_frees_its_slot_and_vocodes_no_more() -> None:
    with FakeEngine(max_slots=1) as fake:
        fake.s3gen.gate.clear()
        number, listener = stream(fake, "x" * 250)
        _, other = stream(fake, "y" * 30)
        fake.engine.cancel(number)
        fake.engine.cancel(number)
        assert isinstance(listener.take(), Cancelled)
        fake.s3gen.gate.set()
        assert len(chunks_of(other)) > 1
        fake.engine.cancel(number)
    assert listener.empty
    assert (fake.scheduler.free_slots, fake.scheduler.free_positions) == (1, 1 << 20)
    assert sum(fake.s3gen.batches) <= 1 + 1 + 2  # warm-up, at most the chunk that was in the vocoder, the other's two


def test_no_chunk_follows_a_cancellation() -> None:
    with FakeEngine() as fake:
        for tokens in range(2, 60, 3):
            number, listener = stream(fake, "x" * tokens)
            fake.engine.cancel(number)
            taken = listener.take_all()
            assert all(isinstance(item, SynthesisChunk) for item in taken[:-1])
            chunks_of(stream(fake, "A.")[1])  # whatever was on its way has come
            assert listener.empty


def test_first_chunks_are_vocoded_alone_and_before_everything_else() -> None:
    s3gen, done = FakeS3Gen(), list[Piece]()
    vocoder = make_vocoder(s3gen, done)
    kinds = ["whole", "first", "given up", "later", "whole", "first", "whole"]
    for kind in kinds:
        vocoder.put(piece(kind))
    vocoder.close()
    vocoder.run()
    assert s3gen.batches == [2, 2, 2]
    assert [it.utterance.job.kind for it in done] == ["first", "first", "whole", "later", "whole", "whole"]


def test_a_batch_that_memory_does_not_hold_is_vocoded_in_parts() -> None:
    s3gen, done = FakeS3Gen(), list[Piece]()
    s3gen.room = 8  # two of the pieces
    vocoder = make_vocoder(s3gen, done)
    for _ in range(3):
        vocoder.put(piece("whole"))
    vocoder.close()
    vocoder.run()
    assert s3gen.batches == [1, 2]
    assert len(done) == 3


def test_a_piece_that_memory_does_not_hold_alone_is_refused_and_the_others_are_spoken() -> None:
    with FakeEngine() as fake:
        fake.s3gen.room = 40
        large, small = (
            stream(fake, "x" * tokens, policy=ChunkPolicy(first=60))[1] for tokens in (49, 29)
        )  # and a full stop
        refused = large.take_all()[-1]
        assert isinstance(refused, Overloaded)
        assert "2.0 s" in str(refused)
        assert sum(len(chunk.samples) for chunk in chunks_of(small)) == (29 + len(".")) * SAMPLES_PER_TOKEN


@pytest.mark.parametrize("prompt_tokens", [250, 75])
def test_what_is_captured_covers_streams_and_stays_within_its_share_of_memory(prompt_tokens: int) -> None:
    sizes: list[tuple[int, int, int]] = []
    s3gen = FakeS3Gen()
    s3gen.prompt_tokens = prompt_tokens
    s3gen.capture = lambda _graphs, found, _report: sizes.extend(found)  # type: ignore[attr-defined]
    vocoder = make_vocoder(s3gen, [], graphs=PretendGraphs(), memory=1 << 30)
    vocoder.warm_up(lambda _line: None)
    policy = ChunkPolicy()
    window, cursor, decoded = set(), Cursor(policy), 900
    while (span := cursor.take(decoded, complete=False)) is not None:
        window.add(span.tokens)
    assert {(1, prompt_tokens, tokens) for tokens in window} <= set(sizes)
    assert all(480 * rows * (250 + tokens) ** 2 <= (1 << 30) / 4 for rows, _, tokens in sizes)  # HiFT sees no prompt
    assert max(rows for rows, _, _ in sizes) == 3


def make_vocoder(s3gen: FakeS3Gen, done: list[Piece], graphs: Graphs = NO_GRAPHS, memory: int = 1 << 34) -> Vocoder:
    return Vocoder(
        s3gen,  # type: ignore[arg-type]
        graphs=graphs,
        batch=3,
        delay=0.0,
        memory=memory,
        prepare=lambda: None,
        rest=lambda: None,
        done=done.append,
        failed=lambda _piece, error: pytest.fail(str(error)),
    )


def piece(kind: str) -> Piece:
    stream = {"first": SimpleNamespace(chunks=0), "later": SimpleNamespace(chunks=1)}.get(kind)
    voice = SimpleNamespace(key="v", conditionals=SimpleNamespace(s3gen=None))
    job = Hashed(stream=stream, ended=kind == "given up", voice=voice, vocoder_seconds=0.0, kind=kind)
    utterance: Any = SimpleNamespace(job=job, tokens=[1, 2, 3, 4], vocoder_seed=1, phase=Phase())
    return Piece(utterance, Span.whole(4))


class Hashed(SimpleNamespace):
    __hash__ = object.__hash__


def test_a_stream_that_is_too_old_is_given_up() -> None:
    with FakeEngine(request_timeout=0.05) as fake:
        fake.s3gen.gate.clear()
        assert isinstance(stream(fake, "Hello.")[1].take(), DeadlineExceeded)


@pytest.mark.parametrize("stage", ["runner", "s3gen", "watermarker"])
def test_a_failure_in_any_stage_ends_every_stream(stage: str) -> None:
    with FakeEngine() as fake:
        fake.runner.gate.clear()
        listeners = [stream(fake, "x" * 50)[1] for _ in range(5)]
        getattr(fake, stage).error = ValueError("broken part")
        fake.runner.gate.set()
        assert all(isinstance(listener.take_all()[-1], EngineFailed) for listener in listeners)
        assert isinstance(fake.failures.get(timeout=WAIT), ValueError)


def test_closing_ends_streams() -> None:
    fake = FakeEngine()
    with fake:
        fake.runner.gate.clear()
        _, listener = stream(fake, "x" * 50)
        closer = threading.Thread(target=fake.engine.close)
        closer.start()
        assert isinstance(listener.take(), RequestError)
        fake.runner.gate.set()
        closer.join(WAIT)
        assert not closer.is_alive()
