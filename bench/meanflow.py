"""English with the MeanFlow vocoder (`CHATTERBOX_VOCODER`), text to audio, beside upstream's `ChatterboxTTS` with
`S3Gen(meanflow=True)` and the same weights."""

from __future__ import annotations

from functools import partial

from bench.engine import compare, upstream_speed
from bench.t3 import full_size_checkpoint
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from tests.fidelity import upstream


def main() -> None:
    english, other = full_size_checkpoint(stops=False), full_size_checkpoint("nano", stops=False)
    checkpoint = Checkpoint.open(english.path, vocoder=other.s3gen_file)
    compare("meanflow", checkpoint, partial(upstream_speed, "meanflow", checkpoint, upstream.tts(checkpoint)))
