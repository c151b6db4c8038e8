"""Nano, text to audio, beside upstream's own `ChatterboxTurboTTS` with its T3 at Nano's size and the same weights."""

from __future__ import annotations

from functools import partial

from bench.engine import compare, upstream_speed
from bench.t3 import full_size_checkpoint
from tests.fidelity import upstream


def main() -> None:
    checkpoint = full_size_checkpoint("nano", stops=False)
    compare("nano", checkpoint, partial(upstream_speed, "nano", checkpoint, upstream.turbo(checkpoint)))
