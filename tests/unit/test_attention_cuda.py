"""The decode kernels without a GPU: their results in Triton's interpreter, and that they compile for Hopper."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chatterbox_engine import attention_cuda


def test_the_kernels_agree_with_torchs_attention_for_rows_of_any_length() -> None:
    script = Path(__file__).with_name("decode_kernels.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert float(line[-1]) < 1e-5, f"rows heads head_dim longest error: {line}"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_kernels_compile_for_compute_capability_9(dtype: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    sizes = {"heads": 16, "head_dim": 64, "splits": 8}
    pool = dict.fromkeys(("query", "keys", "values"), f"*{dtype}")
    places = {"start": "*i64", "position": "*i64"}
    halves = {"partial": "*fp32", "peak": "*fp32", "total": "*fp32"}
    for kernel, types, constants in (
        (attention_cuda._partial_kernel, pool | places | halves | {"scale": "fp32"}, sizes | {"block": 64}),
        (attention_cuda._join_kernel, halves | {"out": f"*{dtype}"}, sizes),
    ):
        source = ASTSource(kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"]


def test_small_batches_are_split_and_large_ones_are_not() -> None:
    assert attention_cuda.splits_for(2, 16) == 16
    assert attention_cuda.splits_for(16, 16) == 4
    assert attention_cuda.splits_for(33, 16) == 1
    assert attention_cuda.splits_for(256, 16) == 1
