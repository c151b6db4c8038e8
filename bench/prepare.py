"""What a visit to a GPU needs beforehand: `make gpu-visit-prepare`, on a machine that reaches the package registry.

Fills `out/visit-prepared`, which `bench.visit` uses: `wheels`, for a machine that reaches no registry but has torch,
and `triton`, the kernels as a GPU of `--capability` needs them, with the same Python and Triton. No GPU is needed: the
engine's networks run on a simulated one, at full size and without weights, and every kernel that they launch is then
compiled.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench.visit import PREPARED
from chatterbox_engine.assemble import BACKBONES
from chatterbox_engine.checkpoint import layout
from chatterbox_engine.checkpoint.dims import Dims, S3GenDims
from chatterbox_engine.checkpoint.families import ENGLISH, FLASH, NANO, TURBO, Family
from chatterbox_engine.checkpoint.random_checkpoint import tiny_dims
from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.s3gen import S3Gen, VocoderJob
from chatterbox_engine.s3gen import attention_cuda as flow_attention
from chatterbox_engine.t3.block_runner import BlockRunner
from chatterbox_engine.t3.flash import FlashT3
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.types import S3GenConditionals
from tests.pretend_cuda import PretendCuda, pretend_cuda

LOCK = Path("requirements/requirements.lock")
PRESENT = ("torch", "torchaudio", "transformers", "numpy", "scipy", "scikit-learn", "numba", "matplotlib", "pytest")
"""Packages that a machine with a GPU has."""
# fmt: off
LACKING = (
    "audioread", "av", "cffi", "charset-normalizer", "chatterbox-flash", "chatterbox-tts", "conformer", "decorator",
    "diffusers", "einops", "execnet", "greenlet", "huggingface-hub", "lazy-loader", "librosa", "ml-dtypes",
    "msgpack", "omegaconf", "onnx", "platformdirs", "pooch", "protobuf", "psycopg", "psycopg-binary", "pycparser",
    "pyloudnorm", "pytest-timeout", "pytest-xdist", "requests", "resemble-perth", "s3tokenizer", "safetensors",
    "sentencex", "setuptools", "soundfile", "soxr", "sqlalchemy", "tokenizers", "torchao", "urllib3",
)
# fmt: on
"""What it lacks of those that the stages of a visit import."""
SLOTS, ROOM = 128, 512
"""Utterances together in the benchmarks, and positions of a row."""

Launch = tuple[JITFunction[Any], tuple[Any, ...], tuple[tuple[str, Any], ...]]
"""A kernel, its arguments, types in place of tensors, and its options."""


def launches(families: Sequence[Family], sizes: Callable[[Family], Dims], dtype: torch.dtype) -> list[Launch]:
    """Every kernel that the networks of these families launch, once for each kind of arguments."""
    found: dict[str, Launch] = {}
    with pretend_cuda() as cuda:
        simulated: Any = JITFunction.run

        def record(kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            given = tuple(arg.dtype if isinstance(arg, Tensor) else arg for arg in args)
            launch = (kernel, given, tuple(options.items()))
            found.setdefault(repr((kernel.fn.__name__, *launch[1:])), launch)
            simulated(kernel, *args, grid=grid, warmup=warmup, **options)

        with mock.patch.object(JITFunction, "run", record):
            for family in families:
                _run(cuda, family, sizes(family), dtype)
    return list(found.values())


@torch.inference_mode()
def _run(cuda: PretendCuda, family: Family, dims: Dims, dtype: torch.dtype) -> None:
    """Makes the graphs of both networks, and vocodes a batch that none of them holds."""
    zeros = {name: torch.zeros(shape, device=cuda.device) for name, shape in layout.t3_layout(dims.t3).items()}
    model = BACKBONES[type(dims.t3)].from_state_dict(zeros, dims.t3, device=cuda.device, dtype=dtype)
    cache = KVCache(dims.t3, family.rows * SLOTS * ROOM, device=cuda.device, dtype=dtype)
    graphs = Graphs(cuda.device, enabled=True)
    runner: Runner | BlockRunner
    if isinstance(model, FlashT3):
        runner = BlockRunner(model, cache, SLOTS, graphs=graphs)
    else:
        runner = Runner(model, cache, SLOTS, family=family, graphs=graphs, heads=dims.alignment_heads)
    state = {name: torch.zeros(shape, device=cuda.device) for name, shape in layout.s3gen_layout(dims).items()}
    s3gen = S3Gen.from_state_dict(state, dims.s3gen, device=cuda.device, dtype=dtype, cfm_steps=1)
    cuda.synchronize()
    own_stream(cuda.device)
    runner.warm_up(lambda _line: None)
    s3gen.capture(Graphs(cuda.device, enabled=True), [(1, 25, 25), (2, 25, 25)])
    size = dims.s3gen
    conditionals = S3GenConditionals(
        torch.zeros(25, dtype=torch.int32), torch.zeros(50, size.mel), torch.ones(size.speaker_embed)
    )
    jobs = [VocoderJob(torch.zeros(75, dtype=torch.int64), s3gen.prepare(conditionals), seed) for seed in range(16)]
    mel = s3gen.mel(jobs)
    from chatterbox_engine.s3gen.model import draw_source

    s3gen.vocode(mel, [job.frames for job in jobs], draw_source(jobs, s3gen.device))
    cuda.synchronize()


class _Target:
    """An active driver that only names its GPU."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def naming(capability: int) -> AbstractContextManager[Any]:
    """Has Triton compile for a GPU of this compute capability meanwhile."""
    return mock.patch.object(driver, "_active", _Target(capability))


def compile_all(kernels: Sequence[Launch]) -> None:
    """Compiles them into Triton's cache."""
    for number, (kernel, given, options) in enumerate(kernels, 1):
        print(f"prepare: kernel {number} of {len(kernels)}, {kernel.fn.__name__}", file=sys.stderr, flush=True)
        kernel.warmup(*given, grid=None, **dict(options))


def compile_attention(dims: S3GenDims, dtype: torch.dtype) -> None:
    """Compiles the flow's attention, which the simulated GPU does not launch."""
    for tiles in flow_attention.TILES[dtype.itemsize]:
        flow_attention._attend_kernel.warmup(
            *(dtype, torch.int64, dtype, 100, 0.5),
            heads=dims.decoder_heads,
            size=dims.decoder_head_dim,
            queries=tiles.queries,
            keys=tiles.keys,
            precision="ieee",
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            grid=None,
        )


def pinned(names: Sequence[str], lock: str) -> list[str]:
    """`name==version` of these packages, as a lock file has them."""
    found = dict(re.findall(r"^([\w.-]+)==([\w.+!-]+)", lock, flags=re.MULTILINE))
    return [f"{name}=={found[name]}" for name in names if name in found]


def download(folder: Path, python: str) -> None:
    """The wheels that a machine lacks, for a version of Python."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31)]
    command += [*platforms, "--platform=manylinux2014_x86_64", f"--python-version={python}", "--dest", str(folder)]
    subprocess.run([*command, *pinned(LACKING, LOCK.read_text(encoding="utf-8"))], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Prepare a visit to a GPU.")
    parser.add_argument("--out", type=Path, default=PREPARED)
    parser.add_argument("--capability", type=int, default=90, help="compute capability, 90 for Hopper")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--python", default="3.12", help="of the machine that is visited")
    parser.add_argument("--no-wheels", action="store_true", help="only the kernels")
    args = parser.parse_args()
    os.environ["TRITON_CACHE_DIR"] = str((args.out / "triton").resolve())
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[args.dtype]
    sizes: Callable[[Family], Dims] = tiny_dims if args.size == "tiny" else lambda family: family.dims
    kernels = launches((ENGLISH, TURBO, NANO, FLASH), sizes, dtype)
    with naming(args.capability):
        compile_all(kernels)
        compile_attention(sizes(ENGLISH).s3gen, dtype)
    if not args.no_wheels:
        download(args.out / "wheels", args.python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
