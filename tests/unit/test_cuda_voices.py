"""What runs on a GPU beside T3 and S3Gen, on one that is pretended: the encoders of clips, and the watermark."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.synthesis.watermark import PerthWatermark
from chatterbox_engine.voices.reference import ReferenceEncoder
from tests.clips import tone
from tests.pretend_cuda import pretend_cuda

pytestmark = pytest.mark.full


@pytest.mark.filterwarnings("ignore:.*LoRACompatibleLinear:FutureWarning")
def test_clips_become_voices_of_the_host(tiny: Checkpoint) -> None:
    importlib.import_module("chatterbox.tts")  # which cannot be imported on a GPU that is pretended
    with pretend_cuda() as cuda:
        own_stream(cuda.device)
        cuda.truth = False  # no clip is long
        encoder = ReferenceEncoder(tiny, cuda.device)
        voices = encoder.encode([encoder.prepare(tone(seconds)[:, 0], 24_000) for seconds in (6.0, 7.5)])
        cuda.synchronize()
    parts = [part for voice in voices for half in (voice.t3, voice.s3gen) for part in vars(half).values()]
    assert {part.device.type for part in parts} == {"cpu"}
    assert [voice.s3gen.embedding.shape for voice in voices] == [(192,), (192,)]
    assert {wait.rsplit(" ", 1)[-1].split(":")[0] for wait in cuda.waits} == {"reference.py"}


def test_the_watermark_waits_for_its_samples_and_nothing_else() -> None:
    with pretend_cuda() as cuda:
        watermark = PerthWatermark(cuda.device)
        cuda.synchronize()
        own_stream(cuda.device)
        cuda.waits.clear()
        marked = watermark.apply(np.ones(12_345, dtype=np.float32))
        assert isinstance(marked, np.ndarray)
        assert marked.shape == (12_345,)
        assert len(cuda.waits) == 2  # for the samples' upload from ordinary memory, and for their download
        cuda.synchronize()
