"""What is kept of every request, and the page of figures made of it. Imports no Locust."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chatterbox_client import Audio


@dataclass(frozen=True)
class Record:
    """One request as its user saw it. Times are in seconds."""

    began: float
    """time.time()"""
    protocol: str
    kind: str
    voice: str
    latency: float
    """Until all of the audio was there."""
    ttfa: float
    """Until the first of the audio was there: for an utterance that comes in one piece, the latency."""
    audio_seconds: float = 0.0
    queue_seconds: float = 0.0
    error: str | None = None
    cancelled: bool = False
    """Its client cancelled on purpose before it had all of the audio."""

    @property
    def rtf(self) -> float | None:
        """Real-time factor, the network and the queue included."""
        return self.latency / self.audio_seconds if self.audio_seconds else None

    def plain(self) -> dict[str, Any]:
        """For JSON and for the wire between Locust's processes."""
        return asdict(self)


class WrongAudio(Exception):
    """The server answered, but not with the audio that was asked for."""


def check(audio: Audio, *, seed: int, max_seconds: float) -> None:
    """Raises WrongAudio unless this is audio of the contract: rate, range, length, loudness, and the seed asked for."""
    samples, segments = audio.samples, int(audio.stats["segments"])
    if audio.sample_rate != 24_000:
        raise WrongAudio(f"the sample rate is {audio.sample_rate}")
    if not len(samples) or not len(audio.speech_tokens):
        raise WrongAudio(f"{len(samples)} samples of {len(audio.speech_tokens)} speech tokens")
    if not np.isfinite(samples).all() or np.abs(samples).max() > 1:
        raise WrongAudio("samples that are not between -1 and 1")
    if float(np.sqrt(np.mean(np.square(samples)))) < 1e-4:
        raise WrongAudio("silence")
    if segments == 1 and len(samples) != 960 * len(audio.speech_tokens):
        raise WrongAudio(f"{len(samples)} samples of {len(audio.speech_tokens)} speech tokens")
    if audio.duration > segments * (max_seconds + 1):
        raise WrongAudio(f"{audio.duration:.1f} s of audio in {segments} segments of at most {max_seconds:g} s")
    if audio.seed != seed:
        raise WrongAudio(f"the seed is {audio.seed}, not {seed}")
