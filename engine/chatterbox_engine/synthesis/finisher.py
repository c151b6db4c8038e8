"""The finisher's threads: waveforms to answers. Watermark, join, statistics; work of the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import torch

from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.metrics import Served
from chatterbox_engine.synthesis.answers import StreamAnswer, WholeAnswer
from chatterbox_engine.synthesis.cores import Cores
from chatterbox_engine.synthesis.jobs import Chunk, Job
from chatterbox_engine.synthesis.watermark import Watermarker
from chatterbox_engine.types import Samples, SynthesisChunk, SynthesisResult

Answers = WeakKeyDictionary[Job, WholeAnswer | StreamAnswer]

Send = Callable[[Job, SynthesisResult | SynthesisChunk], None]

THREADS = 2
"""For live requests; one more is for batch requests, which live ones do not wait for."""


class Finisher:
    """Finishes chunks; all of a request on the same thread, so that they stay in order without a lock."""

    def __init__(self, watermarker: Watermarker, served: Served, *, device: torch.device, cores: Cores) -> None:
        self._watermarker = watermarker
        self._served = served

        def prepare() -> None:
            own_stream(device)
            cores.use_for_finisher()

        self._threads = [ThreadPoolExecutor(1, f"finisher-{n}", initializer=prepare) for n in range(THREADS + 1)]
        # One for each thread. Nothing is kept of a request that was cancelled: its entry goes with the last chunk.
        self._answers: list[Answers] = [WeakKeyDictionary() for _ in self._threads]

    def put(
        self, chunk: Chunk, wave: Samples, seconds: float, *, send: Send, crashed: Callable[[BaseException], None]
    ) -> None:
        """Finishes a chunk. The chunks of a stream must come in order.

        wave: [960 tokens of the window]; seconds: that the vocoder took and that no other chunk of the request counts;
        send: takes what is complete, on the finisher's thread; crashed: takes what finishing raises.
        """
        lane = THREADS if chunk.job.batch else chunk.job.number % THREADS

        vocoded = time.monotonic()

        def finish() -> None:
            try:
                self._finish(chunk, wave, (vocoded - seconds, vocoded), self._answers[lane], send)
            except BaseException as error:
                crashed(error)

        self._threads[lane].submit(finish)

    def close(self) -> None:
        """Ends the threads after what is queued."""
        for thread in self._threads:
            thread.shutdown()

    def _finish(self, chunk: Chunk, wave: Samples, vocoding: tuple[float, float], answers: Answers, send: Send) -> None:
        """Watermarks a chunk, alone, so that a stream and a whole answer are marked alike; sends what is complete."""
        job = chunk.job
        if job not in answers:
            answers[job] = StreamAnswer(job, self._served) if chunk.streamed else WholeAnswer(self._served)
        done = answers[job].add(chunk, self._watermarker.apply(wave), vocoding)
        if done is not None:
            send(job, done)
