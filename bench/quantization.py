"""What int8 weights (and float8 ones, on a GPU that has them) do to T3: time of a step, memory, logits.

Each is compared with the same model unquantised, in the dtypes that the engine takes for both, in the same process;
there is no upstream of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.report import Report, Row, say
from bench.t3 import full_size_checkpoint, make_runner, step_seconds
from chatterbox_engine.assemble import BACKBONES
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.hardware import choose_dtypes
from chatterbox_engine.kernels.linear import is_quantized
from chatterbox_engine.t3.quantize import FLOAT8_CAPABILITY, quantize
from chatterbox_engine.t3.transformer import Transformer
from tests.fidelity.t3_loop import relative_error, teacher_forced

FAMILIES = ("nano", "")
STEPS = {"cuda": 64, "cpu": 8}
BATCHES = {"cuda": (1, 8, 32), "cpu": (1, 4, 8)}


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = os.environ.get("CHATTERBOX_DTYPE", "auto")
    dtype, _ = choose_dtypes(asked, device, say)
    beside, _ = choose_dtypes(asked, device, say, fused_products=False)
    ways = ["int8"]
    if device.type == "cuda" and torch.cuda.get_device_capability() >= FLOAT8_CAPABILITY:
        ways.append("float8")
    report = Report("quantization")
    report.notes = {"dtype": str(dtype), "quantized_dtype": str(beside), "steps": STEPS[device.type]}
    for name in FAMILIES:
        checkpoint = full_size_checkpoint(name, stops=False)
        plain = load(checkpoint, device, dtype)
        exact = logits(checkpoint, plain)
        before = steps(checkpoint, plain)
        plain_bytes = weight_bytes(plain)
        del plain
        for how in ways:
            model = load(checkpoint, device, beside)
            quantize(model, how)
            error = relative_error(logits(checkpoint, model), exact)
            for (count, was), now in zip(before.items(), steps(checkpoint, model).values(), strict=True):
                report.add(
                    f"{checkpoint.family.title}, {how}, {count} utterances",
                    ours=1000 * now,
                    upstream=None,
                    unit="ms a step",
                    more=False,
                    plain=1000 * was,
                    speed=was / now,
                    weights_mb=weight_bytes(model) / 1e6,
                    plain_mb=plain_bytes / 1e6,
                    logits_error=error,
                )
    report.write(draw)


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Transformer:
    dims = checkpoint.dims.t3
    return BACKBONES[type(dims)].from_state_dict(checkpoint.t3_state(), dims, device=device, dtype=dtype)


def logits(checkpoint: Checkpoint, model: Transformer) -> Tensor:
    """Of a prompt and 24 steps whose tokens are given: float32 on the CPU."""
    conditionals = checkpoint.conditionals()
    assert conditionals is not None
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 200, (40,), generator=generator)
    forced = torch.randint(0, 6561, (24,), generator=generator)
    return teacher_forced(model, conditionals.t3, text.to(model.device), forced.to(model.device)).float().cpu()


def steps(checkpoint: Checkpoint, model: Transformer) -> dict[int, float]:
    """Wall seconds of a decode step by the number of utterances."""
    kind = model.device.type
    runner = make_runner(model, BATCHES[kind][-1], checkpoint.family)
    return {count: step_seconds(runner, checkpoint, count, STEPS[kind])[0] for count in BATCHES[kind]}


def weight_bytes(model: Transformer) -> int:
    """Memory of the blocks and the head, scales too."""
    parameters: list[Any] = [p for name, p in model.named_parameters() if name.startswith(("blocks", "head"))]
    stored = [part for p in parameters for part in ((p.qdata, p.scale) if is_quantized(p) else (p,))]
    return sum(part.numel() * part.element_size() for part in stored)


def draw(axes: Any, rows: Sequence[Row]) -> None:
    axes.barh([row["case"] for row in rows], [row["speed"] for row in rows])
    axes.axvline(1.0, color="black")
    axes.set_xlabel("speed of a step, 1 without quantisation")
