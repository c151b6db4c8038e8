"""The vocoder's thread: tokens to waveforms, whole utterances and chunks of streams, several at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from chatterbox_engine.errors import Overloaded, RequestError
from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.metrics import Metrics, NoMetrics
from chatterbox_engine.s3gen import PreparedVoice, S3Gen
from chatterbox_engine.s3gen.model import PROMPT_TOKENS
from chatterbox_engine.synthesis.jobs import Utterance
from chatterbox_engine.synthesis.streaming import LOOKAHEAD, ChunkPolicy, Span
from chatterbox_engine.synthesis.windows import Window, synthesise
from chatterbox_engine.types import SAMPLES_PER_TOKEN, TOKENS_PER_SECOND, Samples
from chatterbox_engine.voices.cache import Memo

VOICES_KEPT = 256
BYTES_PER_PAIR = 480
"""S3Gen's memory at full size, by which a batch is bounded: for each pair of tokens of a row, as the encoder's scores
and their relative positions are what grows fastest. 16 utterances of 40 s behind a prompt of 10 s take 12 GB in
float32, less in bfloat16, which the bound takes no notice of."""

CAPTURED_TOKENS = (13, 38, 63, 103, 163, 253, 383, 503, 703, 1000)
"""Utterance lengths that CUDA graphs are captured for: a stream's windows, and steps of about a half up to 40 s."""

CAPTURED_ROWS = (1, 2, 4, 8, 12, 16, 24)

MORE_TOKENS, MANY_ROWS = (83, 128, 203), 8
"""Further lengths for batches of so many rows, where padding takes as long as speech: the kernels of fewer rows leave
the GPU half idle."""

LAUNCH_BOUND = 8192
"""Tokens of a batch, prompts among them, beyond which its kernels run for longer than launching them takes: larger
ones gain nothing from a graph."""


@dataclass(eq=False)
class Piece:
    """A part of an utterance on its way through the vocoder."""

    utterance: Utterance
    span: Span
    wave: Samples = field(default_factory=lambda: np.empty(0, dtype=np.float32))  # [960 span.tokens]

    @property
    def urgent(self) -> bool:
        """Somebody waits for their first sound."""
        job = self.utterance.job
        return job.stream is not None and job.stream.chunks == 0


class Vocoder:
    """S3Gen behind a queue. `run` is the body of a thread; on CUDA it works on a stream of its own.

    First chunks of streams are vocoded before everything else and without anything else, whose length would hold them
    up; all other pieces in the order in which they came.
    """

    def __init__(
        self,
        s3gen: S3Gen,
        *,
        graphs: Graphs,
        batch: int,
        delay: float,
        memory: int,
        prepare: Callable[[], None],
        rest: Callable[[], None],
        done: Callable[[Piece], None],
        failed: Callable[[Piece, RequestError], None],
        metrics: Metrics | None = None,
    ) -> None:
        """batch: most pieces together; delay: seconds that a piece waits for company; memory: bytes for one batch;
        prepare: called before each batch is vocoded; rest: after one behind which nothing waits; done, failed: called
        once for each piece that was put and not given up."""
        self._s3gen = s3gen
        self._graphs = graphs
        self._memory = memory
        self._metrics = metrics or NoMetrics()
        self._batch = batch
        self._delay = delay
        self._prepare = prepare
        self._rest = rest
        self._done = done
        self._failed = failed
        self._changed = threading.Condition()
        self._urgent: deque[Piece] = deque()
        self._others: deque[Piece] = deque()
        self._closed = False
        self._working = False
        self._prepared: Memo[PreparedVoice] = Memo(VOICES_KEPT)

    def put(self, piece: Piece) -> None:
        """Hands over a piece. One utterance has one piece at a time here."""
        with self._changed:
            (self._urgent if piece.urgent else self._others).append(piece)
            self._changed.notify()

    @property
    def idle(self) -> bool:
        """Nothing is queued or being vocoded. Read without the lock: true or false a moment too long."""
        return not (self._working or self._urgent or self._others)

    def close(self) -> None:
        """Ends `run` after what is queued."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @torch.inference_mode()
    def warm_up(self, report: Callable[[str], None]) -> None:
        """Captures S3Gen's graphs and vocodes a first chunk for nobody, so that the first request is as fast as the
        next. On `run`'s thread."""
        device, mel = self._s3gen.device, self._s3gen.dims.mel
        own_stream(device)
        if self._graphs.enabled:
            self._s3gen.capture(self._graphs, self._captured(), report)
        began = time.monotonic()
        zeros = partial(torch.zeros, device=device)
        prompt = self._s3gen.prompt_tokens
        voice = PreparedVoice(zeros(prompt, dtype=torch.int64), zeros(2 * prompt, mel), zeros(mel))
        first = ChunkPolicy().first
        span = Span(0, 0, first, first + LOOKAHEAD, last=False)
        synthesise(self._s3gen, [Window(torch.zeros(span.tokens, dtype=torch.int64), voice, 0, span)])
        report(f"S3Gen: one chunk vocoded, {time.monotonic() - began:.1f} s")

    @torch.inference_mode()
    def run(self) -> None:
        """The thread's body, after `warm_up`."""
        while (batch := self._next_batch()) is not None:
            self._prepare()
            self._vocode(batch)
            self._working = False
            if self.idle:
                self._rest()

    def _next_batch(self) -> list[Piece] | None:
        """Waits for a piece, then takes what else is ready within the delay; None at the end.

        Pieces of requests that were given up meanwhile are left out.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._urgent or self._others or self._closed)
            if not self._urgent and self._others and self._delay:
                self._changed.wait_for(self._need_not_wait, self._delay)
            pieces = self._urgent or self._others
            if not pieces and self._closed:
                return None
            self._working = True
            batch = [pieces.popleft()]
            while pieces and len(batch) < self._batch and self._fits([*batch, pieces[0]]):
                batch.append(pieces.popleft())
        return [piece for piece in batch if not piece.utterance.job.ended]

    def _need_not_wait(self) -> bool:
        return bool(self._urgent) or self._closed or len(self._others) >= self._batch

    def _vocode(self, batch: Sequence[Piece]) -> None:
        began = time.monotonic()
        spoken = [piece for piece in batch if piece.span.tokens]
        full: str | None = None
        try:
            waves = synthesise(self._s3gen, [self._window(piece) for piece in spoken]) if spoken else []
        except torch.OutOfMemoryError as error:
            full = str(error)
        if full is not None:  # only here is the memory free that the error's traceback held
            self._vocode_in_parts(batch, full)
            return
        for piece, wave in zip(spoken, waves, strict=True):
            piece.wave = _to_samples(wave, piece.span.tokens)
        seconds = time.monotonic() - began
        if spoken:
            self._metrics.vocoded(seconds, len(spoken))
        for job in {piece.utterance.job for piece in batch}:
            job.vocoder_seconds += seconds
        for piece in batch:
            self._done(piece)

    def _vocode_in_parts(self, batch: Sequence[Piece], error: str) -> None:
        """What is too much together may still be possible one half after the other; one piece alone is not."""
        if len(batch) > 1:
            half = len(batch) // 2
            self._vocode(batch[:half])
            self._vocode(batch[half:])
        else:
            seconds = batch[0].span.tokens / TOKENS_PER_SECOND
            self._failed(batch[0], Overloaded(f"no memory left to vocode {seconds:.1f} s of audio: {error}"))

    def _captured(self) -> list[tuple[int, int, int]]:
        """Rows, prompt tokens and utterance tokens of the batches worth a graph. The graphs keep the memory of the
        largest, so that is a quarter of a batch's."""
        prompt = self._s3gen.prompt_tokens
        return [
            (rows, prompt, tokens)
            for rows in sorted({rows for rows in CAPTURED_ROWS if rows < self._batch} | {self._batch})
            for tokens in (*CAPTURED_TOKENS, *(MORE_TOKENS if rows >= MANY_ROWS else ()))
            if rows * (prompt + tokens) <= LAUNCH_BOUND and _bytes(rows, tokens) <= self._memory / 4
        ]

    def _fits(self, batch: Sequence[Piece]) -> bool:
        return _bytes(len(batch), max(piece.span.tokens for piece in batch)) <= self._memory

    def _window(self, piece: Piece) -> Window:
        utterance, span = piece.utterance, piece.span
        voice = utterance.job.voice
        prepared = self._prepared.get(voice.key, lambda: self._s3gen.prepare(voice.conditionals.s3gen))
        tokens = torch.tensor(utterance.tokens[span.start : span.stop])
        return Window(tokens, prepared, utterance.vocoder_seed, span, utterance.phase)


def _bytes(rows: int, tokens: int) -> int:
    """The memory for a batch whose longest window has that many tokens, behind the longest prompt, which is what was
    measured: behind a shorter one HiFT, which does not see prompts, takes as much."""
    return BYTES_PER_PAIR * rows * (PROMPT_TOKENS + tokens) ** 2


def _to_samples(wave: torch.Tensor, tokens: int) -> Samples:
    samples: Samples = wave.float().cpu().numpy()
    assert samples.shape == (tokens * SAMPLES_PER_TOKEN,), f"{tokens} tokens gave {samples.shape} samples"
    return samples
