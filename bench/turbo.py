"""Turbo, text to audio, beside upstream's own `ChatterboxTurboTTS` with the same weights."""

from __future__ import annotations

from functools import partial

from bench.engine import compare, upstream_speed
from bench.t3 import full_size_checkpoint
from tests.fidelity import upstream


def main() -> None:
    checkpoint = full_size_checkpoint("turbo", stops=False)
    compare("turbo", checkpoint, partial(upstream_speed, "turbo", checkpoint, upstream.turbo(checkpoint)))
