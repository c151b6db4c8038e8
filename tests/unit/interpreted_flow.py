"""The flow's way on a GPU beside its way on a CPU: its kernels, but for the attention's, run in Triton's interpreter.

A process of its own, since the switch is read at import. Prints the relative difference of the mels of a batch, in
float32 and with float16 weights. Argument: the folder of a checkpoint.
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
    dims, state = checkpoint.dims.s3gen, checkpoint.s3gen_state()

    def make(dtype: torch.dtype) -> S3Gen:
        s3gen = S3Gen.from_state_dict(state, dims, device=torch.device("cpu"), dtype=dtype, cfm_steps=2)
        s3gen.batching.together = True
        return s3gen

    def mel(s3gen: S3Gen) -> torch.Tensor:
        def job(prompt: int, tokens: int) -> VocoderJob:
            return VocoderJob(random_tokens(dims, tokens), s3gen.prepare(random_conditionals(dims, prompt)), 1)

        return s3gen.mel([job(9, 7), job(14, 11)])

    exact = mel(make(torch.float32))
    for dtype in (torch.float32, torch.float16):
        s3gen = make(dtype)
        with mock.patch.object(layers, "on_gpu", return_value=True):
            ours = mel(s3gen)
        assert not torch.equal(ours, exact), "the kernels have not been used"
        print(float((ours - exact).norm() / exact.norm()))


if __name__ == "__main__":
    main()
