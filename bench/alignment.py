"""What reading where T3 looks in the text adds to a decode step, of all utterances of a batch.

`CHECKPOINT=engine/chatterbox_engine/demo_voice` is the demo voice; by default random weights at English's official
sizes.
`upstream` is our step that is not read. Steps with and without reading alternate, so that both see the same machine.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.report import Report, Row, say, synchronize
from bench.t3 import BATCHES, EXTENT, TEXT_TOKENS, full_size_checkpoint
from chatterbox_engine.assemble import BACKBONES
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.hardware import choose_dtypes
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.extents import ExtentAllocator
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.runner import Prompt, Runner

STEPS = 200


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, _ = choose_dtypes(os.environ.get("CHATTERBOX_DTYPE", "auto"), device, say)
    checkpoint = full_size_checkpoint(stops=False)
    dims = checkpoint.dims.t3
    model = BACKBONES[type(dims)].from_state_dict(checkpoint.t3_state(), dims, device=device, dtype=dtype)
    report = Report("alignment")
    report.notes = {"dtype": str(dtype), "heads": str(checkpoint.dims.alignment_heads), "steps": STEPS}
    for count in BATCHES if device.type == "cuda" else BATCHES[:5]:
        cache = KVCache(dims, checkpoint.family.rows * count * EXTENT, device=device, dtype=dtype)
        graphs = Graphs(device, enabled=True)
        heads = checkpoint.dims.alignment_heads
        runner = Runner(model, cache, count, family=checkpoint.family, graphs=graphs, heads=heads)
        runner.warm_up(say)
        plain, read = step_seconds(runner, checkpoint, count)
        report.add(
            f"{count} utterances",
            ours=1000 * read,
            upstream=1000 * plain,
            unit="ms",
            utterances=count,
            added_percent=100 * (read / plain - 1),
        )
    report.write(draw)


def draw(axes: Any, rows: Sequence[Row]) -> None:
    counts = [row["utterances"] for row in rows]
    axes.plot(counts, [row["ours"] for row in rows], "o-", label="read")
    axes.plot(counts, [row["upstream"] for row in rows], "o--", label="not read")
    axes.set_xlabel("utterances together")
    axes.set_ylabel("milliseconds a step")
    axes.legend()


def step_seconds(runner: Runner, checkpoint: Checkpoint, count: int) -> tuple[float, float]:
    """Median wall seconds of a step that is not read and of one that is."""
    model, family = runner.model, runner.family
    allocator = ExtentAllocator(runner.cache.scratch)
    conditionals = checkpoint.conditionals()
    assert conditionals is not None
    prefix = model.prefix(conditionals.t3, family.sampling.exaggeration)
    prompts = []
    for slot in range(count):
        text = torch.randint(1, 200, (TEXT_TOKENS,), generator=torch.Generator().manual_seed(slot))
        rows = tuple(allocator.allocate(EXTENT) for _ in range(family.rows))
        prompts.append(Prompt(slot, rows, text, family.sampling, torch.rand(2 * STEPS + 8), aligned=True))
    unread = [replace(prompt, aligned=False) for prompt in prompts]
    runner.prefill(prompts, [prefix] * count).read()
    times: tuple[list[float], list[float]] = ([], [])
    for step in range(2 * STEPS):
        synchronize()
        began = time.perf_counter()
        runner.decode(prompts if step % 2 else unread).read()
        times[step % 2].append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
