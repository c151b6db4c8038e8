"""T3: tokens a second at 1 to 128 utterances, beside upstream with the same weights in the same process.

Upstream takes one utterance at a time, so its figure for n utterances is that of one: n of them take n times as long.
On a GPU a third column has the well-known recipe: upstream's own blocks in bfloat16, static cache, compiled, batch one;
`BENCH_RECIPE=0` leaves it out, as compiling takes a minute.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.report import Report, Row, say, seconds, synchronize
from chatterbox_engine.checkpoint import random_checkpoint
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.families import ENGLISH, Family
from chatterbox_engine.hardware import choose_dtypes
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.extents import ExtentAllocator
from chatterbox_engine.t3.kv_cache import KVCache, bytes_per_position
from chatterbox_engine.t3.llama import T3
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.t3.transformer import Transformer
from tests.fidelity import upstream

TEXT_TOKENS = 60
STEPS = 250
EXTENT = 512
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
COPY_BYTES = 1 << 30
TINY = os.environ.get("BENCH_SIZE") == "tiny"
"""Whether the tests' small networks are measured, which shows that a benchmark runs and no more."""


def main() -> None:
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype, _ = choose_dtypes(os.environ.get("CHATTERBOX_DTYPE", "auto"), device, say)
    batches = BATCHES if cuda else BATCHES[:5]
    steps = STEPS if cuda else 16
    checkpoint = full_size_checkpoint(stops=False)
    report = Report("t3")
    bandwidth = copy_bandwidth(device)
    report.notes = {"dtype": str(dtype), "copy_bytes_per_second": bandwidth, "text_tokens": TEXT_TOKENS, "steps": steps}

    say("t3: upstream, one utterance at a time")
    theirs = upstream_step_seconds(checkpoint, device, steps)
    say(f"t3: upstream {1 / theirs:.1f} tokens/s")
    recipe = recipe_step_seconds(checkpoint, device, steps) if cuda and os.environ.get("BENCH_RECIPE") != "0" else None
    if recipe:
        say(f"t3: the recipe {1 / recipe:.1f} tokens/s")
    model = T3.from_state_dict(checkpoint.t3_state(), checkpoint.dims.t3, device=device, dtype=dtype)
    runner = make_runner(model, batches[-1])
    prefix = prefix_seconds(model, checkpoint)
    for count in batches:
        ours, prefill = step_seconds(runner, checkpoint, count, steps)
        floor = roofline_seconds(model, count, bandwidth)
        report.add(
            f"{count} utterances",
            ours=count / ours,
            upstream=1 / theirs,
            unit="tokens/s",
            utterances=count,
            recipe=1 / recipe if recipe else None,
            step_ms=1000 * ours,
            prefill_ms=1000 * prefill,
            prefix_ms=1000 * prefix,
            roofline_ms=1000 * floor,
            of_roofline=floor / ours,
            memory_gb=torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        )
    report.write(draw)


def full_size_checkpoint(family: str = "", *, stops: bool = True) -> Checkpoint:
    """Random weights at a family's official sizes (`turbo`, `nano`, English by default: 3.2 GB), made once under out/;
    or the folder `CHECKPOINT`; with `BENCH_SIZE=tiny` the tests' small ones. stops: whether an utterance ends by
    itself."""
    given, size = os.environ.get("CHECKPOINT"), "tiny" if TINY else "full"
    name = f"{size}-{family}" if family else size
    made = Path("out/checkpoints") / f"{name}{'' if stops else '-endless'}-{random_checkpoint.FORMAT}"
    folder = Path(given) if given else made
    if not folder.is_dir():
        say(f"bench: making a random checkpoint in {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent))
        of = random_checkpoint.TINY[name.replace("full", "tiny")]
        size: random_checkpoint.Size = "tiny" if TINY else "full"
        random_checkpoint.write_random_checkpoint(partial, size, family=of, stops=stops, voiced=True)
        partial.rename(folder)
    return Checkpoint.open(folder)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read plus written a second by a large copy on the device."""
    source = torch.randint(0, 255, (COPY_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / seconds(lambda: target.copy_(source))


def roofline_seconds(model: T3, utterances: int, bandwidth: float) -> float:
    """The least time of a step: every weight once, and the filled KV positions (halfway through the run)."""
    weights = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if n.startswith(("blocks", "head")))
    filled = model.dims.prefix + TEXT_TOKENS + STEPS // 2
    cache = 2 * utterances * filled * bytes_per_position(model.dims, model.dtype)
    return (weights + cache) / bandwidth


def make_runner(model: Transformer, utterances: int, family: Family = ENGLISH) -> Runner:
    cache = KVCache(model.dims, family.rows * utterances * EXTENT, device=model.device, dtype=model.dtype)
    runner = Runner(model, cache, utterances, family=family, graphs=Graphs(model.device, enabled=True))
    runner.warm_up(say)
    return runner


def step_seconds(runner: Runner, checkpoint: Checkpoint, count: int, steps: int) -> tuple[float, float]:
    """Wall seconds of a decode step of `count` utterances, and of the prefill of all of them after a known prefix."""
    model = runner.model
    allocator = ExtentAllocator(runner.cache.scratch)
    conditionals = checkpoint.conditionals()
    assert conditionals is not None
    prefix = model.prefix(conditionals.t3, 0.5)
    generator = torch.Generator().manual_seed(count)
    prompts = []
    for slot in range(count):
        text = torch.randint(1, 200, (TEXT_TOKENS,), generator=generator)
        rows = tuple(allocator.allocate(EXTENT) for _ in range(runner.family.rows))
        uniforms = torch.rand(steps + 8, generator=generator)
        prompts.append(Prompt(slot, rows, text, runner.family.sampling, uniforms))
    prefill = seconds(lambda: runner.prefill(prompts, [prefix] * count).read(), repeat=1)
    runner.decode(prompts).read()
    synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        drawn = runner.decode(prompts)
    drawn.read()
    return (time.perf_counter() - began) / steps, prefill


def prefix_seconds(model: Transformer, checkpoint: Checkpoint) -> float:
    """Wall seconds of a voice's prefix, which its first request waits for."""
    conditionals = checkpoint.conditionals()
    assert conditionals is not None
    voice = conditionals.t3
    return seconds(lambda: model.prefix(voice, 0.5))


def upstream_step_seconds(checkpoint: Checkpoint, device: torch.device, steps: int) -> float:
    """Wall seconds a token of upstream's own `T3.inference`, prefill left out by a difference of two lengths."""
    module = upstream.t3(checkpoint.dims.t3, checkpoint.t3_state()).to(device)
    with torch.no_grad():
        module.speech_head.weight[module.hp.stop_speech_token] = 0  # so that it runs its length
    few = max(2, steps // 8)
    upstream_seconds(module, checkpoint, few)  # the warm-up
    short = upstream_seconds(module, checkpoint, few)
    return (upstream_seconds(module, checkpoint, few + steps) - short) / steps


def upstream_seconds(module: Any, checkpoint: Checkpoint, tokens: int) -> float:
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    conditionals = checkpoint.conditionals()
    assert conditionals is not None
    condition = T3Cond(
        speaker_emb=conditionals.t3.speaker[None],
        cond_prompt_speech_tokens=conditionals.t3.prompt_tokens[None],
        emotion_adv=0.5 * torch.ones(1, 1, 1),
    ).to(device=module.device)
    inner = torch.randint(1, 200, (TEXT_TOKENS - 2,), generator=torch.Generator().manual_seed(0))
    text: Tensor = torch.cat([torch.tensor([255]), inner, torch.tensor([0])]).expand(2, -1).clone()
    began = time.perf_counter()
    produced = module.inference(t3_cond=condition, text_tokens=text, max_new_tokens=tokens)
    synchronize()
    assert produced.shape[1] == tokens, f"upstream stopped after {produced.shape[1]} of {tokens} tokens"
    return time.perf_counter() - began


@torch.inference_mode()
def recipe_step_seconds(checkpoint: Checkpoint, device: torch.device, steps: int) -> float:
    """Wall seconds a token of the well-known recipe: upstream's modules in bfloat16 over transformers' static cache of
    1,200 positions, the step compiled with CUDA graphs, one utterance of two rows, guidance and draw in plain torch."""
    from transformers import StaticCache

    module = upstream.t3(checkpoint.dims.t3, checkpoint.t3_state()).to(device, torch.bfloat16)
    cache = StaticCache(config=module.cfg, max_cache_len=1200)
    prompt = checkpoint.dims.t3.prefix + TEXT_TOKENS + 2

    def step(embeds: Tensor, position: Tensor) -> Tensor:
        out = module.tfmr(inputs_embeds=embeds, past_key_values=cache, cache_position=position, use_cache=True)
        return module.speech_head(out.last_hidden_state[:, -1]).float()

    compiled = torch.compile(step, mode="reduce-overhead")
    step(torch.randn(2, prompt, module.dim, device=device, dtype=torch.bfloat16), torch.arange(prompt, device=device))
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    warm_up = 5
    for index in range(warm_up + steps):
        if index == warm_up:
            synchronize()
            began = time.perf_counter()
        embed = module.speech_emb(token) + module.speech_pos_emb.get_fixed_embedding(index + 1)
        logits = compiled(embed.expand(2, -1, -1).contiguous(), torch.tensor([prompt + index], device=device))
        guided = logits[:1] + 0.5 * (logits[:1] - logits[1:])
        token = torch.multinomial((guided / 0.8).softmax(dim=-1), 1)
    synchronize()
    return (time.perf_counter() - began) / steps


def draw(axes: Any, rows: Sequence[Row]) -> None:
    counts = [row["utterances"] for row in rows]
    axes.plot(counts, [row["ours"] for row in rows], "o-", label="chatterbox-triton")
    axes.plot(counts, [row["utterances"] / row["roofline_ms"] * 1000 for row in rows], ":", label="roofline")
    axes.plot(counts, [row["upstream"] for row in rows], "--", label="chatterbox-tts 0.1.7")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("utterances decoded together")
    axes.set_ylabel("speech tokens a second")
    axes.legend()
    axes.grid(alpha=0.3)
