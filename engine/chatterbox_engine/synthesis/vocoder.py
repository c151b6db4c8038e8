"""The vocoder's thread: tokens to waveforms, whole utterances and chunks of streams, several at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.errors import Overloaded, RequestError
from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.metrics import Metrics, NoMetrics
from chatterbox_engine.s3gen import PreparedVoice, VocoderJob
from chatterbox_engine.s3gen.model import PROMPT_TOKENS
from chatterbox_engine.s3gen.noise import Phase
from chatterbox_engine.synthesis.cores import Cores
from chatterbox_engine.synthesis.jobs import Chunk, Job
from chatterbox_engine.synthesis.seeds import VOCODER_NOISE, derive
from chatterbox_engine.synthesis.streaming import LOOKAHEAD, ChunkPolicy, Span
from chatterbox_engine.synthesis.windows import Networks, synthesise, window
from chatterbox_engine.types import SAMPLES_PER_TOKEN, TOKENS_PER_SECOND, S3GenConditionals, Samples
from chatterbox_engine.voices.cache import Memo

VOICES_KEPT = 256
BYTES_PER_PAIR = 480
"""Bytes of S3Gen's memory at full size for each pair of tokens of a row, which bounds a batch: the encoder's scores and
their relative positions grow fastest. 16 utterances of 40 s after a prompt of 10 s take 12 GB in float32, less in
bfloat16, which the bound ignores."""

CAPTURED_TOKENS = (13, 38, 63, 103, 163, 253, 383, 503, 703, 1000)
"""Utterance lengths that CUDA graphs are captured for: a stream's windows, and steps of about a half up to 40 s."""

CAPTURED_ROWS = (1, 2, 4, 8, 12, 16, 24)

MORE_TOKENS, MANY_ROWS = (83, 128, 203), 8
"""Further lengths for batches of so many rows, where padding takes as long as speech: the kernels of fewer rows leave
the GPU half idle."""

LAUNCH_BOUND = 8192
"""Tokens of a batch, prompts included, above which its kernels run for longer than launching them takes: larger batches
gain nothing from a graph."""


class VocoderNetworks(Networks, Protocol):
    """The part of `S3Gen` that the vocoder uses; its methods are documented there."""

    dims: S3GenDims
    prompt_tokens: int

    def prepare(self, conditionals: S3GenConditionals, /) -> PreparedVoice:
        """A voice on the device."""

    def capture(self, graphs: Graphs, sizes: Sequence[tuple[int, int, int]], report: Callable[[str], None], /) -> None:
        """Captures CUDA graphs."""


class Requests(Protocol):
    """The vocoder's queries about active requests, answered by the engine's `Register`. Thread-safe."""

    def __contains__(self, job: Job, /) -> bool:
        """Whether the request is active."""

    @property
    def decoding(self) -> bool:
        """Whether any request still decodes."""


class Vocoder:
    """S3Gen behind a queue. `run` is the body of a thread; on CUDA it works on a stream of its own.

    First chunks of streams are vocoded before all others and in batches of their own, because longer chunks would delay
    them; then other chunks in order of arrival, and last those of batch requests. The chunks of one stream are vocoded
    in order and in different batches: each continues at the phase at which the previous one ended.
    """

    def __init__(
        self,
        s3gen: VocoderNetworks,
        *,
        graphs: Graphs,
        batch: int,
        delay: float,
        memory: int,
        cores: Cores,
        metrics: Metrics | None = None,
    ) -> None:
        """batch: maximum chunks of a batch; delay: seconds that a chunk waits for others; memory: bytes for a batch."""
        self._s3gen = s3gen
        self._graphs = graphs
        self._batch = batch
        self._delay = delay
        self._memory = memory
        self._cores = cores
        self._metrics = metrics or NoMetrics()
        self._changed = threading.Condition()
        self._urgent: deque[Chunk] = deque()
        self._others: deque[Chunk] = deque()
        self._deferred: deque[Chunk] = deque()  # of batch requests
        self._closed = False
        self._working = False
        self._prepared: Memo[PreparedVoice] = Memo(VOICES_KEPT)
        self._phases: WeakKeyDictionary[Job, Phase] = WeakKeyDictionary()
        """State of each stream's current utterance. Owned by `run`'s thread; removed with the stream's last chunk."""

    def put(self, chunk: Chunk) -> None:
        """Queues a chunk. A stream's chunks must come in order; the previous one may still be queued."""
        with self._changed:
            queue = self._deferred if chunk.job.batch else self._urgent if chunk.first else self._others
            queue.append(chunk)
            self._changed.notify()

    @property
    def idle(self) -> bool:
        """Whether no chunk is queued or being vocoded. Read without the lock, so it may be briefly out of date."""
        return not (self._working or self._next)

    def close(self) -> None:
        """Ends `run` once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def warm_up(self, report: Callable[[str], None]) -> None:
        """Captures S3Gen's graphs and vocodes a discarded chunk, so that the first request is as fast as later ones.
        Called on `run`'s thread, which gets a stream of its own."""
        own_stream(self._s3gen.device)
        self._warm_up(report)

    @torch.inference_mode()
    def _warm_up(self, report: Callable[[str], None]) -> None:
        device, mel = self._s3gen.device, self._s3gen.dims.mel
        if self._graphs.enabled:
            self._s3gen.capture(self._graphs, self._captured(), report)
        began = time.monotonic()
        zeros = partial(torch.zeros, device=device)
        prompt = self._s3gen.prompt_tokens
        voice = PreparedVoice(zeros(prompt, dtype=torch.int64), zeros(2 * prompt, mel), zeros(mel))
        first = ChunkPolicy().first
        span = Span(0, 0, first, first + LOOKAHEAD, last=False)
        synthesise(self._s3gen, [window(torch.zeros(span.tokens, dtype=torch.int64), voice, 0, span, Phase())])
        report(f"S3Gen: one chunk vocoded, {time.monotonic() - began:.1f} s")
        self._cores.release()

    @torch.inference_mode()
    def run(
        self,
        requests: Requests,
        *,
        done: Callable[[Chunk, Samples, float], None],
        failed: Callable[[Chunk, RequestError], None],
    ) -> None:
        """The thread's body, after `warm_up`, until `close`. Every chunk of a request that has not ended is passed on
        once, in the order of its stream.

        done: called with its waveform, [960 tokens of the window], and the seconds of its batch, which only one chunk
        of a request gets; failed: called when one chunk alone does not fit into memory. Any other
        error is raised, and ends the engine.
        """
        self._done, self._failed = done, failed
        while (batch := self._next_batch()) is not None:
            self._cores.use_for_vocoder(alone=not requests.decoding)
            self._vocode([chunk for chunk in batch if chunk.job in requests])
            self._working = False
            if self.idle:
                self._cores.release()

    def _next_batch(self) -> list[Chunk] | None:
        """Waits for a chunk, then takes the others that are ready within the delay; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._next or self._closed)
            if self._next and self._delay:
                self._changed.wait_for(self._need_not_wait, self._delay)
            chunks = self._next
            if not chunks and self._closed:
                return None
            self._working = True
            return self._take(chunks)

    @property
    def _next(self) -> deque[Chunk]:
        """The queue that the next batch is taken from."""
        return self._urgent or self._others or self._deferred

    def _need_not_wait(self) -> bool:
        return bool(self._urgent) or self._closed or len(self._next) >= self._batch

    def _take(self, chunks: deque[Chunk]) -> list[Chunk]:
        """Takes the oldest chunks that fit into one batch, one of each stream; a stream's later ones keep their
        place."""
        batch, left = [chunks.popleft()], list[Chunk]()
        while chunks and len(batch) < self._batch:
            chunk = chunks[0]
            if chunk.streamed and any(chunk.job is other.job for other in batch):
                left.append(chunks.popleft())
            elif self._fits([*batch, chunk]):
                batch.append(chunks.popleft())
            else:
                break
        chunks.extendleft(reversed(left))
        return batch

    def _vocode(self, batch: Sequence[Chunk]) -> None:
        began = time.monotonic()
        spoken = [chunk for chunk in batch if chunk.tokens]
        full: str | None = None
        try:
            waves = synthesise(self._s3gen, [self._window(chunk) for chunk in spoken]) if spoken else []
        except torch.OutOfMemoryError as error:
            full = str(error)
        if full is not None:  # the error's traceback held memory until here
            self._vocode_in_parts(batch, full)
            return
        samples = {chunk: _to_samples(wave, len(chunk.tokens)) for chunk, wave in zip(spoken, waves, strict=True)}
        seconds = time.monotonic() - began
        if spoken:
            self._metrics.vocoded(seconds, len(spoken))
        counted = set[Job]()
        for chunk in batch:
            own = 0.0 if chunk.job in counted else seconds
            counted.add(chunk.job)
            self._done(chunk, samples.get(chunk, np.empty(0, dtype=np.float32)), own)

    def _vocode_in_parts(self, batch: Sequence[Chunk], error: str) -> None:
        """Retries a batch that exceeds the memory as two halves; a single chunk fails."""
        if len(batch) > 1:
            half = len(batch) // 2
            self._vocode(batch[:half])
            self._vocode(batch[half:])
        else:
            seconds = len(batch[0].tokens) / TOKENS_PER_SECOND
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

    def _fits(self, batch: Sequence[Chunk]) -> bool:
        return _bytes(len(batch), max(len(chunk.tokens) for chunk in batch)) <= self._memory

    def _window(self, chunk: Chunk) -> VocoderJob:
        voice = chunk.found.voice
        prepared = self._prepared.get(voice.key, lambda: self._s3gen.prepare(voice.conditionals.s3gen))
        seed = derive(chunk.job.request.seed, chunk.segment, VOCODER_NOISE)
        return window(torch.tensor(chunk.tokens), prepared, seed, chunk.span, self._phase(chunk))

    def _phase(self, chunk: Chunk) -> Phase | None:
        if chunk.span.complete:
            return None
        if chunk.span.begin == 0:
            self._phases[chunk.job] = Phase()
        return self._phases[chunk.job]


def _bytes(rows: int, tokens: int) -> int:
    """The memory for a batch whose longest window has that many tokens, after the longest prompt, for which it was
    measured: after a shorter one HiFT, which does not see prompts, takes as much."""
    return BYTES_PER_PAIR * rows * (PROMPT_TOKENS + tokens) ** 2


def _to_samples(wave: torch.Tensor, tokens: int) -> Samples:
    samples: Samples = wave.float().cpu().numpy()
    assert samples.shape == (tokens * SAMPLES_PER_TOKEN,), f"{tokens} tokens gave {samples.shape} samples"
    return samples
