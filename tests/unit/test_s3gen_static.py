"""What CUDA wants of S3Gen, shown without a GPU, on tensors that have a device and a shape but no values.

Reading a value (a synchronisation), or mixing tensors of the host and of the device, raises there.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from chatterbox_engine.checkpoint import Checkpoint
from chatterbox_engine.s3gen import PreparedVoice, S3Gen, VocoderJob, flow
from chatterbox_engine.s3gen.stream import Window, synthesise
from chatterbox_engine.streaming import Span
from chatterbox_engine.types import S3GenConditionals
from tests.unit.static import HostCopies, PretendGraphs


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    times = flow._schedule(10, cosine=True)  # read on the host, when the weights are loaded
    monkeypatch.setattr(flow, "_schedule", lambda _steps, cosine: times)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # which there is no fake of
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.fixture
def s3gen(tiny: Checkpoint, fake: FakeTensorMode) -> S3Gen:
    state, dims = tiny.s3gen_state(), tiny.dims.s3gen
    with fake:
        return S3Gen.from_state_dict(state, dims, device=torch.device("cuda"), dtype=torch.bfloat16)


def prepare(s3gen: S3Gen, tokens: int) -> PreparedVoice:
    dims = s3gen.dims
    voice = S3GenConditionals(
        torch.zeros(tokens, dtype=torch.int64), torch.zeros(2 * tokens, dims.mel), torch.ones(dims.speaker_embed)
    )
    return s3gen.prepare(voice)


def test_nothing_between_tokens_and_waveform_waits_for_the_device(s3gen: S3Gen, fake: FakeTensorMode) -> None:
    with fake:
        voices = [prepare(s3gen, tokens) for tokens in (9, 20)]
        jobs = [
            VocoderJob(torch.zeros(n, dtype=torch.int64), voice, 1) for n, voice in zip((5, 15), voices, strict=True)
        ]
        waves = s3gen.synthesise(jobs)
        span = Span(0, 0, 10, 13, last=False)
        chunks = synthesise(s3gen, [Window(torch.zeros(13, dtype=torch.int64), voice, 1, span) for voice in voices])
        assert [tuple(wave.shape) for wave in waves] == [(4800,), (14_400,)]
        assert [tuple(chunk.shape) for chunk in chunks] == [(12_480,), (12_480,)]
        assert {tensor.device.type for tensor in (*waves, *chunks)} == {"cuda"}
        with pytest.raises(DataDependentOutputException):  # what a synchronisation would look like
            waves[0][0].item()


def test_no_captured_half_copies_from_the_host(s3gen: S3Gen, fake: FakeTensorMode) -> None:
    class Watched(PretendGraphs):
        def capture(self, key: object, function: object) -> None:
            with HostCopies() as copies:
                function()  # type: ignore[operator]
            assert not copies.found, f"{key}: {copies.found}"

    lines: list[str] = []
    with torch.inference_mode(), fake:
        s3gen.capture(Watched(), [(2, 20, 13), (1, 20, 40)], lines.append)
    assert [line.split(",")[1] for line in lines] == [" 1 x 40 tokens", " 2 x 13 tokens"], "the largest first"
