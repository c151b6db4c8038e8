"""The CUDA kernels without a GPU: their results in Triton's interpreter, and what they compile to."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton import knobs
from triton.backends.compiler import BaseBackend, GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import create_function_from_signature

from bench import kernels
from chatterbox_engine.kernels import linear_cuda
from chatterbox_engine.kernels.shapes import FEW_ROWS
from chatterbox_engine.s3gen import attention_cuda as flow_attention
from chatterbox_engine.s3gen import norm_cuda, snake_cuda
from chatterbox_engine.t3 import alignment_cuda, attention_cuda, block_attention_cuda, sampling_cuda
from chatterbox_engine.t3.alignment import NO_STOP, SHORT_TEXT

BYTES = {"bf16": 2, "fp32": 4}
KERNELS = {"decode", "read", "project", "swiglu", "norm", "blocks", "snake", "sample", "attend"}


@pytest.mark.full
def test_the_kernels_agree_with_torchs_operators() -> None:
    script = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert {line[0] for line in lines} == KERNELS
    for line in lines:
        _, _, error, bound = line
        assert float(error) < float(bound), f"kernel, case, error, bound: {line}"


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], target: int = 90, **options: int) -> Any:
    """A kernel as it is compiled for pointers that torch allocated, which are aligned."""
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in types if types[name][0] == "*"}
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def spilled(kernel: Any) -> int:
    """Bytes of a thread's registers that go to memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage)))


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("dtype", BYTES)
def test_the_kernel_of_a_decode_steps_attention_compiles(dtype: str, splits: int, rotated: bool) -> None:
    sizes = {"heads": 16, "head_dim": 64, "splits": splits}
    data = dict.fromkeys(("qkv", "rotation", "keys", "values", "out"), f"*{dtype}")
    places = {"start": "*i64", "position": "*i64"}
    halves = {"partial": "*fp32", "peak": "*fp32", "total": "*fp32", "arrived": "*i32"}
    types = data | places | halves | {"scale": "fp32"}
    unused: dict[str, None] = dict.fromkeys([*(halves if splits == 1 else ()), *(() if rotated else ("rotation",))])
    given = {name: kind for name, kind in types.items() if name not in unused}
    constants = sizes | unused | {"block": attention_cuda.BLOCK, "overlapping": True}
    ptx = compiled(attention_cuda._decode_kernel, given, constants, num_warps=1).asm["ptx"]
    before, after = ptx.split("griddepcontrol.wait")
    assert "st.global" not in before
    assert before.count("ld.global.v4") >= 2, "the first keys and values are loaded ahead"
    assert after.index("griddepcontrol.launch_dependents") < after.index("ld.global")
    if splits > 1:  # what all threads of a split stored is there before it counts, and is read past the first cache
        before, after = ptx.split("atom.global.gpu.acq_rel")
        assert before.rindex("bar.sync") > before.rindex("st.global")
        joined = after[: after.index("st.global", after.index("ld.global"))]
        assert joined.count("ld.global") == joined.count("ld.global.cg") > 0


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("dtype", BYTES)
def test_the_kernels_that_read_where_t3_looks_compile_and_spill_nothing(dtype: str, rotated: bool) -> None:
    places = dict.fromkeys(("slot", "row", "prompt", "step"), "*i64")
    types = dict.fromkeys(("pool", "queries", "rotation"), f"*{dtype}") | places | {"picked": "*i64", "start": "*i64"}
    types |= {"scores": "*fp32", "layer_numbers": "i64", "longest": "i32", "scale": "fp32"}
    sizes = {"heads": 16, "head_dim": 64, "named": 3, "splits": alignment_cuda.SPLITS, "block": alignment_cuda.BLOCK}
    unused = {} if rotated else {"rotation": None}
    given = {name: kind for name, kind in types.items() if name not in unused}
    scores = compiled(alignment_cuda._scores_kernel, given, sizes | unused, num_warps=1)
    types = places | dict.fromkeys(("unconditional", "text", "holding"), "*i64") | {"logits": f"*{dtype}"}
    types |= dict.fromkeys(("scores", "readings"), "*fp32") | dict.fromkeys(
        ("slots", "longest", "vocab", "stop"), "i32"
    )
    sizes = {"named": 3, "many": 4, "numbers": 9, "near": alignment_cuda.NEAR, "window": 16}
    sizes |= {"no_stop": NO_STOP, "short_text": SHORT_TEXT, "block": alignment_cuda.WIDE}
    readings = compiled(alignment_cuda._reading_kernel, types, sizes, num_warps=4)
    assert not spilled(scores)
    assert not spilled(readings)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", BYTES)
def test_the_attention_of_blocks_loads_keys_ahead_and_spills_nothing_in_bfloat16(dtype: str, capability: int) -> None:
    types = dict.fromkeys(("query", "keys", "values", "out"), f"*{dtype}")
    types |= {"start": "*i64", "end": "*i64", "scale": "fp32"}
    tile, warps, stages = block_attention_cuda.TILES[BYTES[dtype]]
    constants = {"heads": 16, "size": 64, "block": 16, "tile": tile, "precision": "ieee"}
    options = {"num_warps": warps, "num_stages": stages}
    kernel = compiled(block_attention_cuda._attend_blocks_kernel, types, constants, capability, **options)
    assert "cp.async" in kernel.asm["ptx"]
    assert kernel.metadata.shared <= 99 << 10
    assert dtype == "fp32" or not spilled(kernel)


@pytest.mark.parametrize("rows", [1, linear_cuda.FEWEST_ROWS])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("product", kernels.PRODUCTS.values(), ids=kernels.PRODUCTS)
def test_the_kernel_of_the_fewest_rows_reads_its_matrix_before_it_waits(
    product: kernels.Product, capability: int, rows: int
) -> None:
    outputs, inputs, activation, optional = product
    unused = dict.fromkeys({"bias", "gain", "shift", "residual"} - optional)
    types = dict.fromkeys(["x", "weight", "out", *optional], "*bf16") | {"eps": "fp32"}
    size, width = triton.next_power_of_2(inputs), linear_cuda.SUM_WIDTH
    constants = {
        "rows": rows,
        "inputs": inputs,
        "outputs": outputs,
        "activation": activation,
        "width": width,
        "size": size,
    }
    constants |= {"overlapping": capability >= 90} | unused
    warps = linear_cuda.sum_warps(size)
    kernel = compiled(linear_cuda._sum_kernel, types, constants, capability, num_warps=warps)
    assert not spilled(kernel)
    ptx = kernel.asm["ptx"]
    if capability >= 90:
        before, after = ptx.split("griddepcontrol.wait")
        matrix = outputs * inputs * (2 if activation == "swiglu" else 1)
        loads = matrix // (outputs // width) // (8 * 32 * warps)  # of 16 bytes, by each thread
        assert before.count(".v4") == before.count("ld.global.v4") >= loads * inputs // size
        assert "st.global" not in before
        assert "ld.global" in after


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("product", kernels.PRODUCTS.values(), ids=kernels.PRODUCTS)
def test_the_kernel_of_a_product_loads_ahead_and_spills_nothing(product: kernels.Product, capability: int) -> None:
    outputs, inputs, activation, optional = product
    unused = dict.fromkeys({"bias", "gain", "shift", "residual"} - optional)
    types = dict.fromkeys(["x", "weight", "out", *optional], "*bf16") | {"rows": "i32", "eps": "fp32"}
    width = linear_cuda.tile_width(outputs)
    constants = {
        "inputs": inputs,
        "outputs": outputs,
        "activation": activation,
        "height": FEW_ROWS,
        "width": width,
    } | unused
    constants |= {"parts": linear_cuda.WARPS, "step": linear_cuda.STEP}
    stages = linear_cuda.stages(width * (2 if activation == "swiglu" else 1))
    options = {"num_warps": linear_cuda.WARPS, "num_stages": stages}
    kernel = compiled(linear_cuda._project_kernel, types, constants, capability, **options)
    assert all(name in kernel.asm["ptx"] for name in ("cp.async", "ldmatrix", "mma.sync"))
    assert kernel.metadata.shared <= 99 << 10
    assert not spilled(kernel)


@pytest.mark.parametrize("product", ["Llama's head", "Llama's down", "Turbo's up"])
@pytest.mark.parametrize("wide", [False, True])
def test_the_kernel_of_a_product_fits_a_gpu_without_bfloat16(product: str, wide: bool) -> None:
    outputs, inputs, activation, optional = kernels.PRODUCTS[product]
    types = dict.fromkeys(["x", "weight", "out", *optional], "*fp16") | {"rows": "i32", "eps": "fp32"}
    if wide:  # the residual sums are float32
        types |= dict.fromkeys({"gain": ["x"], "residual": ["residual", "out"]}[_sum_side(optional)], "*fp32")
    width = linear_cuda.tile_width(outputs)
    sizes = {"inputs": inputs, "outputs": outputs, "height": FEW_ROWS, "width": width}
    constants: dict[str, Any] = {
        **sizes,
        "activation": activation,
        "parts": linear_cuda.WARPS,
        "step": linear_cuda.STEP,
    }
    constants |= dict.fromkeys({"bias", "gain", "shift", "residual"} - optional)
    stages = linear_cuda.stages(width * (2 if activation == "swiglu" else 1), 4 if types["x"] == "*fp32" else 2)
    options = {"num_warps": linear_cuda.WARPS, "num_stages": stages}
    assert compiled(linear_cuda._project_kernel, types, constants, 75, **options).metadata.shared <= 64 << 10


def _sum_side(optional: set[str]) -> str:
    """On which side of a product the residual sums are."""
    return "gain" if "gain" in optional else "residual"


@pytest.mark.parametrize("tiles", flow_attention.TILES[2])
def test_the_kernel_of_the_flows_attention_fits_a_gpu_without_bfloat16(tiles: flow_attention.Tiles) -> None:
    types = {"qkv": "*fp16", "lengths": "*i64", "out": "*fp16", "positions": "i32", "scale": "fp32"}
    sizes = {"heads": 8, "size": 64, "queries": tiles.queries, "keys": tiles.keys, "precision": "ieee"}
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    assert compiled(flow_attention._attend_kernel, types, sizes, 75, **options).metadata.shared <= 64 << 10


def test_a_gated_layers_kernel_compiles() -> None:
    assert compiled(linear_cuda._swiglu_kernel, {"x": "*bf16", "out": "*bf16", "width": "i32"}, {"block": 1024})


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(
    ("parts", "lead"),
    [
        (("change", "total"), 0),
        (("offset", "after"), 2),
        (("offset", "after", "next_weight", "next_bias", "normed"), 0),
    ],
)
def test_the_kernel_of_the_flows_norms_compiles(parts: tuple[str, ...], lead: int, dtype: str) -> None:
    unused = dict.fromkeys({"change", "total", "offset", "after", "next_weight", "next_bias", "normed"} - set(parts))
    types = dict.fromkeys(["x", "weight", "bias", "out", *parts], f"*{dtype}")
    types |= {"rows": "i32", "positions": "i32", "reach": "i32", "eps": "fp32", "next_eps": "fp32"}
    constants = {
        "width": 256,
        "lead": lead,
        "everywhere": False,
        "activated": "after" in parts,
        "size": 256,
        "block": 16,
    } | unused
    assert not spilled(compiled(norm_cuda._norm_kernel, types, constants))


def test_the_kernel_of_snake_has_exact_sines() -> None:
    tensors = ("x", "change", "bias", "alpha", "inverse", "total", "out")
    types = dict.fromkeys(tensors, "*fp32") | {"mask": "*u8", "numbers": "i32"}
    kernel = compiled(snake_cuda._snake_kernel, types, {"width": 64, "block": snake_cuda.BLOCK})
    assert "sin.approx" not in kernel.asm["ptx"]


@pytest.mark.parametrize("has_top", [True, False])
@pytest.mark.parametrize(("vocab", "guided"), [(8194, True), (6563, False)])
def test_the_kernel_that_samples_compiles(vocab: int, guided: bool, has_top: bool) -> None:
    integers = ("slot_of", "conditional_row", "unconditional_row", "top_k", "token", "step", "alive", "tokens")
    floats = ("cfg_weight", "temperature", "repetition_penalty", "min_p", "top_p", "uniforms")
    types = {"logits": "*bf16", "seen": "*u8"} | dict.fromkeys(integers, "*i64") | dict.fromkeys(floats, "*fp32")
    constants = {"vocab": vocab, "steps": 4098, "bos_once": -1 if guided else 6561, "block": 1 << vocab.bit_length()}
    constants |= {"penalty_last": not guided, "has_min_p": guided, "has_top": has_top}
    assert compiled(sampling_cuda._sample_kernel, types, constants, num_warps=sampling_cuda.WARPS).asm["cubin"]


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", BYTES)
def test_the_flows_attention_loads_keys_ahead_and_two_programs_fit_a_multiprocessor(
    dtype: str, capability: int, few: bool
) -> None:
    tiles = flow_attention.TILES[BYTES[dtype]][few]
    types = {"qkv": f"*{dtype}", "lengths": "*i64", "out": f"*{dtype}", "positions": "i32", "scale": "fp32"}
    constants = {"heads": 8, "size": 64, "queries": tiles.queries, "keys": tiles.keys, "precision": "ieee"}
    kernel = compiled(
        flow_attention._attend_kernel, types, constants, capability, num_warps=tiles.warps, num_stages=tiles.stages
    )
    assert "cp.async" in kernel.asm["ptx"]
    assert kernel.metadata.shared <= 80 << 10
    if dtype == "bf16":
        assert ("wgmma" if capability == 90 else "mma.sync") in kernel.asm["ptx"]


def test_batches_of_all_lengths_share_the_flows_attention() -> None:
    """Compiling it for a batch takes half a second of its time."""
    kernel = flow_attention._attend_kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, BaseBackend)
    qkv = torch.zeros(1)
    (_, even, _), (_, odd, _) = (bind(qkv, None, qkv, size, 0.1, 8, 64, 128, 64, "ieee") for size in (640, 642))
    assert even == odd


def test_small_batches_are_split_and_large_ones_are_not() -> None:
    assert attention_cuda.splits_for(2, 16) == 16
    assert attention_cuda.splits_for(16, 16) == 8
    assert attention_cuda.splits_for(65, 16) == 1
    assert attention_cuda.splits_for(256, 16) == 1
