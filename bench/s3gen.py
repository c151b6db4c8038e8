"""S3Gen: audio seconds per second by batch size, utterance and prompt length, next to upstream in the same run.

Both have the same random weights. Upstream takes one utterance at a time, so n of them take it n times as long. Each
round runs all cases in turn, so that a load spike on the machine affects both. On a GPU, batches up to the size that
the engine captures are captured in CUDA graphs, at their exact sizes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import chatterbox_engine.s3gen.attention_cuda  # noqa: F401  registers its operator
from bench.report import Report, Row, say, seconds, synchronize
from bench.t3 import TINY
from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.hardware import choose_dtypes
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.s3gen import S3Gen, VocoderJob
from chatterbox_engine.s3gen.model import draw_source
from chatterbox_engine.synthesis.vocoder import LAUNCH_BOUND
from chatterbox_engine.synthesis.windows import synthesise
from chatterbox_engine.types import TOKENS_PER_SECOND
from tests.fidelity.s3gen_reference import TINY as TINY_DIMS
from tests.fidelity.s3gen_reference import Upstream, build_upstream, random_conditionals, random_tokens

DIMS = TINY_DIMS if TINY else S3GenDims()
STEPS = 10


@dataclass(frozen=True)
class Case:
    """Utterances of one length, spoken in one voice."""

    speech: int  # seconds
    prompt: int  # seconds
    batches: tuple[int, ...]
    in_float32: bool = False
    """Whether in float32, too, where the engine takes another type."""


ON_CPU = (
    Case(2, 3, (1,)),
    Case(3, 10, (1,), in_float32=True),
    Case(3, 10, (8,)),
)
ON_CUDA = tuple(Case(speech, prompt, (1, 2, 4, 8, 16, 32)) for prompt in (3, 10) for speech in (2, 5, 10))
MATRIX = {"cpu": 2048, "cuda": 8192}
ROUNDS = {"cpu": 2, "cuda": 3}


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    theirs = build_upstream(DIMS)
    cases = ON_CUDA if device.type == "cuda" else ON_CPU
    _, chosen = choose_dtypes("auto", device, say)
    dtypes = {case: sorted({chosen, *((torch.float32,) if case.in_float32 else ())}, key=str) for case in cases}
    rates = {dtype: matrix_rate(device, dtype) for dtype in set().union(*dtypes.values())}
    report = Report("s3gen")
    report.notes = {
        "euler_steps": STEPS,
        "matrix_flops_per_second": {str(dtype): rate for dtype, rate in rates.items()},
    }
    state = theirs.state_dict()
    ours = {dtype: S3Gen.from_state_dict(state, DIMS, device=device, dtype=dtype) for dtype in rates}
    operations = {case: flops(ours[chosen], case) for case in cases}
    if device.type == "cuda":
        graphs = Graphs(device, enabled=True)
        for s3gen in ours.values():
            s3gen.capture(graphs, captured(cases), say)
    theirs.flow.to(device)
    theirs.mel2wav.to(device)
    for case in cases:
        measure(report, case, theirs, {dtype: ours[dtype] for dtype in dtypes[case]}, operations[case], rates)
    report.write(draw)


def measure(
    report: Report,
    case: Case,
    theirs: Upstream,
    ours: dict[torch.dtype, S3Gen],
    operations: float,
    rates: dict[torch.dtype, float],
) -> None:
    """Adds a row per batch size and dtype. operations: of one utterance."""
    kinds = [(dtype, batch) for dtype in ours for batch in case.batches]
    jobs = {kind: make_jobs(ours[kind[0]], case, kind[1]) for kind in kinds}
    device = next(iter(ours.values())).device
    say(f"s3gen: {case.speech} s after a prompt of {case.prompt} s")
    calls: dict[Any, Callable[[], object]] = {None: upstream_call(theirs, case, device)}
    calls |= {(dtype, batch): lambda d=dtype, b=batch: synthesise(ours[d], jobs[d, b]) for dtype, batch in kinds}
    taken = in_turn(calls, ROUNDS[device.type])
    for dtype, batch in kinds:
        audio = batch * case.speech
        report.add(
            f"{batch} x {case.speech} s, prompt {case.prompt} s, {str(dtype).removeprefix('torch.')}",
            ours=audio / taken[dtype, batch],
            upstream=case.speech / taken[None],
            unit="audio s/s",
            batch=batch,
            seconds=taken[dtype, batch],
            **stages(ours[dtype], jobs[dtype, batch]),
            gflop_per_audio_second=operations / case.speech / 1e9,
            of_matrix_rate=batch * operations / taken[dtype, batch] / rates[dtype],
        )


def captured(cases: Sequence[Case]) -> list[tuple[int, int, int]]:
    """Rows, prompt tokens and utterance tokens of the cases up to the engine's largest graphs."""
    sizes = [
        (rows, case.prompt * TOKENS_PER_SECOND, case.speech * TOKENS_PER_SECOND)
        for case in cases
        for rows in case.batches
    ]
    return [size for size in sizes if size[0] * (size[1] + size[2]) <= LAUNCH_BOUND]


def flops(s3gen: S3Gen, case: Case) -> float:
    """Floating-point operations of the products and convolutions of one utterance, on a GPU at its exact size."""
    jobs = make_jobs(s3gen, case, 1)
    if s3gen.batching.together:
        size = (1, case.prompt * TOKENS_PER_SECOND, case.speech * TOKENS_PER_SECOND)
        s3gen.capture(Graphs(s3gen.device, enabled=False), [size])
    return count_flops(lambda: synthesise(s3gen, jobs))


def make_jobs(s3gen: S3Gen, case: Case, batch: int) -> list[VocoderJob]:
    voice = s3gen.prepare(random_conditionals(DIMS, case.prompt * TOKENS_PER_SECOND))
    return [VocoderJob(random_tokens(DIMS, case.speech * TOKENS_PER_SECOND, i), voice, seed=i) for i in range(batch)]


def upstream_call(theirs: Upstream, case: Case, device: torch.device) -> Callable[[], object]:
    """One utterance through upstream's own `inference` of both parts."""
    voice = random_conditionals(DIMS, case.prompt * TOKENS_PER_SECOND)
    tokens = random_tokens(DIMS, case.speech * TOKENS_PER_SECOND).to(device)
    reference = {
        "prompt_token": voice.prompt_tokens[None].to(device),
        "prompt_token_len": torch.tensor([len(voice.prompt_tokens)], device=device),
        "prompt_feat": voice.prompt_mel[None].to(device),
        "prompt_feat_len": None,
        "embedding": voice.embedding[None].to(device),
    }

    @torch.inference_mode()
    def call() -> object:
        length = torch.tensor([len(tokens)], device=device)
        mel, _ = theirs.flow.inference(tokens[None], length, **reference, finalize=True, n_timesteps=STEPS)
        return theirs.mel2wav.inference(mel, torch.zeros(1, 1, 0, device=device))[0].cpu()

    return call


def in_turn(calls: dict[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """Median wall seconds of each call. Each is called once as a warm-up, then once in every round."""
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for number in range(rounds + 1):
        for key, call in calls.items():
            synchronize()
            began = time.perf_counter()
            call()
            synchronize()
            if number:
                times[key].append(time.perf_counter() - began)
    return {key: statistics.median(values) for key, values in times.items()}


def stages(s3gen: S3Gen, jobs: Sequence[VocoderJob]) -> dict[str, float]:
    """Milliseconds of every stage, measured separately."""
    frames = [job.frames for job in jobs]
    totals = [job.voice.frames + job.frames for job in jobs]
    source = draw_source(jobs, s3gen.device)
    mel = s3gen.mel(jobs)
    tokens = torch.zeros(len(jobs), totals[0] // 2, dtype=torch.int64, device=s3gen.device)
    with torch.inference_mode():
        encoder = seconds(lambda: s3gen.encoder(tokens, None), repeat=1)
    whole = seconds(lambda: s3gen.mel(jobs), repeat=1)
    return {
        "source_noise_ms": 1e3 * seconds(lambda: draw_source(jobs, s3gen.device)),
        "encoder_ms": 1e3 * encoder,
        "flow_ms": 1e3 * (whole - encoder),
        "vocoder_ms": 1e3 * seconds(lambda: s3gen.vocode(mel, frames, source), repeat=1),
    }


def count_flops(call: Callable[[], object]) -> float:
    """Floating-point operations of a call that replays no graph."""
    aten = torch.ops.aten  # torch counts neither the first two nor our own
    fused = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        aten._addmm_activation: product_flops,
        torch.ops.chatterbox.attend: flow_attention_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        call()
    return float(counter.get_total_flops())


def attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_args: Any, **_options: Any) -> int:
    """Operations of both products of an attention, from the shapes [rows, heads, positions, size]."""
    rows, heads, queries, size = q
    return 2 * rows * heads * queries * k[2] * (size + v[3])


def product_flops(_bias: Sequence[int], x: Sequence[int], weight: Sequence[int], *_args: Any, **_options: Any) -> int:
    """Operations of a product of matrices, from their shapes."""
    return 2 * x[0] * x[1] * weight[1]


def flow_attention_flops(qkv: Sequence[int], *_args: Any, **_options: Any) -> int:
    """As `attention_flops`, of padded rows too, from the shape [rows, positions, 3, heads, size]."""
    rows, positions, _, heads, size = qkv
    return 4 * rows * heads * positions**2 * size


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product."""
    size = MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b)


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """Speed of every case, ours next to upstream's."""
    places = range(len(rows))
    axes.barh([place - 0.2 for place in places], [row["ours"] for row in rows], height=0.4, label="this engine")
    axes.barh([place + 0.2 for place in places], [row["upstream"] for row in rows], height=0.4, label="upstream")
    axes.set_yticks(list(places), [row["case"] for row in rows], fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xlabel("audio seconds per second")
    axes.legend()
