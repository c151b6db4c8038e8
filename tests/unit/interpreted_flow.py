"""The flow's way on a GPU beside its way on a CPU: its kernels, but for the attention's, run in Triton's interpreter.

A process of its own, since the switch is read at import. Prints the relative difference of the mels of a batch.
Argument: the folder of the `tiny` checkpoint.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.s3gen import S3Gen, VocoderJob, layers
from tests.fidelity.s3gen_reference import random_conditionals, random_tokens


def main() -> None:
    checkpoint = Checkpoint.open(Path(sys.argv[1]))
    dims = checkpoint.dims.s3gen
    s3gen = S3Gen.from_state_dict(checkpoint.s3gen_state(), dims, device=torch.device("cpu"), cfm_steps=2)
    s3gen.batching.together = True

    def job(prompt: int, tokens: int) -> VocoderJob:
        return VocoderJob(random_tokens(dims, tokens), s3gen.prepare(random_conditionals(dims, prompt)), 1)

    jobs = [job(9, 7), job(14, 11)]
    exact = s3gen.mel(jobs)
    with mock.patch.object(layers, "on_gpu", return_value=True):
        mel = s3gen.mel(jobs)
    assert not torch.equal(mel, exact), "the kernels have not been used"
    print(float((mel - exact).norm() / exact.norm()))


if __name__ == "__main__":
    main()
