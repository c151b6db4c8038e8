"""S3Gen holds on to nothing from one utterance to the next."""

from __future__ import annotations

import random

import psutil
import pytest
import torch

from chatterbox_engine.s3gen import S3Gen, VocoderJob
from chatterbox_engine.synthesis.windows import synthesise
from tests.fidelity.s3gen_reference import TINY, build_upstream, random_conditionals, random_tokens

# upstream builds its attention from a class that diffusers means to drop
pytestmark = pytest.mark.filterwarnings("ignore:.*LoRACompatibleLinear:FutureWarning")

TOTAL = 500
# Tokens of each row and the voice. oneDNN keeps what it compiled for a shape, up to 1024 of them, so on a CPU memory
# grows until the shapes have been seen: each of these is seen among the first 50 utterances, and then again and again.
BATCHES = [
    [(40, 2)] * 8,
    [(1, 0), (2, 1), (40, 2), (7, 0), (33, 1), (12, 2), (25, 0), (3, 2)],
    [(1, 0)],
    [(17, 1), (5, 2), (40, 0)],
    [(31, 2), (30, 1), (29, 0), (4, 0)],
    [(8, 0), (9, 0)],
]


def held(device: torch.device) -> int:
    """Bytes of this process, or of the GPU memory that torch has reserved for it."""
    return torch.cuda.memory_reserved() if device.type == "cuda" else psutil.Process().memory_info().rss


@pytest.mark.full
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_memory_is_flat_within_two_percent_over_five_hundred_utterances(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    s3gen = S3Gen.from_state_dict(build_upstream(TINY).state_dict(), TINY, device=torch.device(device))
    voices = [s3gen.prepare(random_conditionals(TINY, prompt)) for prompt in (3, 11, 25)]
    chance = random.Random(1)
    done, settled = 0, 0
    while done < TOTAL:
        for rows in chance.choices(BATCHES, k=4) if settled else 2 * BATCHES:
            jobs = [VocoderJob(random_tokens(TINY, n, done), voices[v], chance.getrandbits(63)) for n, v in rows]
            synthesise(s3gen, jobs)
            done += len(jobs)
        settled = settled or held(s3gen.device)
    assert held(s3gen.device) < 1.02 * settled
