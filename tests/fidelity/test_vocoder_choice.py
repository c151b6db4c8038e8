"""T3's tokens of one checkpoint through S3Gen of another, beside upstream's `S3Gen(meanflow=True)`."""

from __future__ import annotations

import pytest
import torch

from chatterbox_engine.assemble import load_s3gen, open_checkpoint
from chatterbox_engine.config import Config
from chatterbox_engine.s3gen import VocoderJob
from tests.conftest import CheckpointOf
from tests.fidelity import upstream
from tests.fidelity.s3gen_reference import random_tokens
from tests.fidelity.t3_loop import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:.*LoRACompatibleLinear:FutureWarning")


@pytest.mark.parametrize(
    ("name", "vocoder"),
    [
        ("tiny", "tiny-turbo"),
        ("tiny-multilingual", "tiny-turbo"),
        ("tiny", "tiny-flash"),
        pytest.param("full", "full-turbo", marks=pytest.mark.full),
    ],
)
def test_the_mel_of_a_meanflow_vocoder_equals_upstreams_on_the_same_tokens_and_noise(
    name: str, vocoder: str, checkpoint_of: CheckpointOf
) -> None:
    other = checkpoint_of(vocoder)
    config = Config(checkpoint=str(checkpoint_of(name).path), vocoder=str(other.s3gen_file))
    checkpoint = open_checkpoint(config)
    voice = checkpoint.conditionals()
    assert voice is not None
    tokens = random_tokens(checkpoint.dims.s3gen, 30)
    theirs = upstream.s3gen(checkpoint.dims.s3gen, checkpoint.dims.reference, other.s3gen_state())
    assert theirs.meanflow
    raw = torch.load(checkpoint.file("conds.pt"), weights_only=True)["gen"]
    torch.manual_seed(3)
    reference = theirs.flow_inference(tokens[None], ref_dict=dict(raw), finalize=True)[0].T  # [frames, mel]
    prompt, mel = voice.s3gen.prompt_mel.shape
    torch.manual_seed(3)  # upstream draws the utterance's noise first, then all of it, of which the prompt's is used
    spoken = torch.randn(1, mel, 2 * len(tokens))
    noise = torch.cat([torch.randn(1, mel, prompt + 2 * len(tokens))[..., :prompt], spoken], dim=-1)[0].T
    ours = load_s3gen(config, checkpoint, torch.device("cpu"), torch.float32)
    mine = ours.mel([VocoderJob(tokens, ours.prepare(voice.s3gen), seed=0)], [noise])[0]
    assert mine.shape == reference.shape
    assert relative_error(mine, reference) < 1e-4
