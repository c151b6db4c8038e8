"""Flash, text to audio, beside upstream's own `ChatterboxFlashTTS` (chatterbox-flash 0.1.0) with the same weights.

Upstream is measured in float32 and in bfloat16, which is its default, and compared in the faster of the two.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from bench.engine import ROUNDS, SECONDS, TEXT, compare
from bench.report import say, synchronize
from bench.t3 import full_size_checkpoint
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.types import SAMPLE_RATE, TOKENS_PER_SECOND
from tests.fidelity import upstream


def main() -> None:
    checkpoint = full_size_checkpoint("flash", stops=False)
    compare("flash", checkpoint, lambda: upstream_speed(checkpoint))


def upstream_speed(checkpoint: Checkpoint) -> float:
    """Audio seconds per wall second of upstream's `generate`."""
    from chatterbox_flash.tts import Conditionals

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tts = upstream.flash(checkpoint)
    tts.device = torch.device(device)
    tts.s3gen.to(device)
    speeds = []
    for dtype in (torch.float32, torch.bfloat16):
        tts.t3.to(device=device, dtype=dtype)
        tts.t3._cached_engine = None
        tts.conds = Conditionals.load(checkpoint.path / "conds.pt", map_location=device)
        tts.conds.t3.to(dtype=dtype)
        if device == "cuda":
            speak(tts)  # the warm-up
        samples, began = 0, time.perf_counter()
        for seed in range(ROUNDS):
            torch.manual_seed(seed)
            samples += speak(tts)
        speeds.append(samples / SAMPLE_RATE / (time.perf_counter() - began))
        say(f"flash: upstream in {dtype} speaks {speeds[-1]:.3f} audio seconds per second")
    return max(speeds)


def speak(tts: Any) -> int:
    """Samples of one utterance of upstream's."""
    samples: int = tts.generate(TEXT, max_speech_tokens=round(SECONDS * TOKENS_PER_SECOND)).shape[-1]
    synchronize()
    return samples
