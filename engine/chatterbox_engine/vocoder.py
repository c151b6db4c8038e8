"""The vocoder's thread: finished utterances to waveforms, several at a time."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence

import torch

from chatterbox_engine.jobs import Utterance
from chatterbox_engine.s3gen import PreparedVoice, S3Gen, VocoderJob
from chatterbox_engine.types import SAMPLES_PER_TOKEN, Samples
from chatterbox_engine.voices import Memo

VOICES_KEPT = 256


class Vocoder:
    """S3Gen behind a queue. `run` is the thread's body; on CUDA it works on a stream of its own."""

    def __init__(self, s3gen: S3Gen, *, batch: int, delay: float, done: Callable[[Utterance], None]) -> None:
        self._s3gen = s3gen
        self._batch = batch
        self._delay = delay
        self._done = done
        self._inbox: queue.SimpleQueue[Utterance | None] = queue.SimpleQueue()
        self._prepared: Memo[PreparedVoice] = Memo(VOICES_KEPT)

    def put(self, utterance: Utterance) -> None:
        """Hands over an utterance whose tokens are complete."""
        self._inbox.put(utterance)

    def close(self) -> None:
        """Ends `run` after what is queued."""
        self._inbox.put(None)

    @torch.inference_mode()
    def run(self) -> None:
        device = self._s3gen.device
        if device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(device))
        while (batch := self._next_batch()) is not None:
            self._vocode(batch)

    def _next_batch(self) -> list[Utterance] | None:
        """Waits for one utterance, then takes what else is ready within the delay; None at the end."""
        first = self._inbox.get()
        if first is None:
            return None
        batch = [first]
        deadline = time.monotonic() + self._delay
        while len(batch) < self._batch:
            try:
                utterance = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if utterance is None:
                self._inbox.put(None)
                break
            batch.append(utterance)
        return batch

    def _vocode(self, batch: Sequence[Utterance]) -> None:
        began = time.monotonic()
        spoken = [utterance for utterance in batch if utterance.tokens]
        waves = self._s3gen.synthesise([self._job(utterance) for utterance in spoken]) if spoken else []
        for utterance in batch:
            utterance.samples = torch.empty(0).numpy()
        for utterance, wave in zip(spoken, waves, strict=True):
            utterance.samples = _to_samples(wave, len(utterance.tokens))
        seconds = time.monotonic() - began
        for job in {utterance.job for utterance in batch}:
            job.vocoder_seconds += seconds
        for utterance in batch:
            self._done(utterance)

    def _job(self, utterance: Utterance) -> VocoderJob:
        voice = utterance.job.voice
        prepared = self._prepared.get(voice.key, lambda: self._s3gen.prepare(voice.conditionals.s3gen))
        return VocoderJob(torch.tensor(utterance.tokens), prepared, utterance.vocoder_seed)


def _to_samples(wave: torch.Tensor, tokens: int) -> Samples:
    samples: Samples = wave.float().cpu().numpy()
    assert samples.shape == (tokens * SAMPLES_PER_TOKEN,), f"{tokens} tokens gave {samples.shape} samples"
    return samples
