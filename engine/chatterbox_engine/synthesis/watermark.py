"""Perth, Resemble AI's inaudible watermark, on by default as in upstream."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Protocol

import numpy as np
import torch

from chatterbox_engine.errors import ConfigError
from chatterbox_engine.types import SAMPLE_RATE, Samples


class Watermarker(Protocol):
    """Marks one utterance."""

    def apply(self, samples: Samples) -> Samples:
        """[n] to [n], both mono at SAMPLE_RATE. Called from several threads."""


class NoWatermark:
    """Leaves audio as it is (`CHATTERBOX_WATERMARK=0`)."""

    def apply(self, samples: Samples) -> Samples:
        return samples


class PerthWatermark:
    """`perth.PerthImplicitWatermarker`. Its network is only read, so threads may share it.

    On a CPU it takes 15 ms for a second of audio, 0.4 of them for resampling. Utterances of different lengths cannot
    share a batch: its mask depends on a row's loudest frame, its spectra on the row's end. On a GPU the network runs
    there, on the calling thread's stream.
    """

    def __init__(self, device: torch.device) -> None:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # perth imports the deprecated pkg_resources
            import perth

            # perth suppresses a failed import of its network and sets None
            if perth.PerthImplicitWatermarker is None:
                raise ConfigError(
                    "the Perth watermark cannot load: install resemble-perth with setuptools below 81, "
                    "or set CHATTERBOX_WATERMARK=0 to serve audio without a watermark"
                )
            self._perth = perth.PerthImplicitWatermarker(device=device)
            # librosa loads its resampler at the first call, which takes seconds
            self.apply(np.zeros(SAMPLE_RATE, dtype=np.float32))

    def apply(self, samples: Samples) -> Samples:
        if not len(samples):
            return samples
        with torch.inference_mode():
            marked = self._perth.apply_watermark(samples, sample_rate=SAMPLE_RATE)
        # Resampling to Perth's rate and back can end a sample early or late.
        exact = np.zeros_like(samples)
        exact[: len(marked)] = marked[: len(samples)]
        return np.clip(exact, -1.0, 1.0)


def make_watermarker(device: torch.device, *, enabled: bool) -> Watermarker:
    """Perth, or no watermark when it is disabled. Raises ConfigError when Perth is enabled and cannot load."""
    return PerthWatermark(device) if enabled else NoWatermark()
