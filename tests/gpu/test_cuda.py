"""The CUDA paths against the CPU's. Run by `make test` on a machine with a GPU, skipped elsewhere."""

from __future__ import annotations

import dataclasses
import queue

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import kernels
from chatterbox_engine import assemble
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.dims import LlamaDims, S3GenDims
from chatterbox_engine.config import Config
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.kernels.linear import Projection
from chatterbox_engine.s3gen import S3Gen, VocoderJob
from chatterbox_engine.s3gen.attention_cuda import attend
from chatterbox_engine.s3gen.model import draw_source
from chatterbox_engine.t3.attention import Context, decode_attention, prompt_attention
from chatterbox_engine.t3.kv_cache import SPLIT_PAIRS, KVCache
from chatterbox_engine.t3.quantize import FLOAT8_CAPABILITY
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.types import SamplingParams, SynthesisRequest, SynthesisResult
from chatterbox_engine.voices.reference import ReferenceEncoder
from tests.clips import tone
from tests.conftest import CheckpointOf
from tests.fidelity.s3gen_reference import TINY, build_upstream, random_conditionals, random_tokens
from tests.fidelity.t3_loop import SLOTS, Loop, Request, Served, relative_error, runner_of, teacher_forced

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_decode_kernels_agree_with_torch(dtype: torch.dtype, rotated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 63, 64, 65, 700, 1199, 2500, 17]
    start = torch.tensor([sum(lengths[:row]) + 9 * row for row in range(len(lengths))])
    pool = torch.randn(1, 2, sum(lengths) + 100, 16, 64, generator=generator).to(dtype)
    qkv = torch.randn(len(lengths), 3, 16, 64, generator=generator).to(dtype)
    angles = torch.rand(len(lengths), 32, generator=generator)
    rotation = torch.stack([angles.cos(), angles.sin()], dim=1).to(dtype) if rotated else None
    arrived = torch.zeros(SPLIT_PAIRS, dtype=torch.int32)
    given = (qkv, rotation, pool.clone(), arrived, start, torch.tensor(lengths) - 1)
    ours = [None if tensor is None else tensor.cuda() for tensor in given]
    got = decode_attention(*ours[:4], 0, *ours[4:]).float().cpu()
    assert not ours[3].any(), "the next step counts from zero"
    exact_pool = pool.float()
    exact = decode_attention(
        qkv.float(), None if rotation is None else rotation.float(), exact_pool, arrived, 0, start, given[-1]
    )
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    assert relative_error(got, exact) < bound, f"{relative_error(got, exact):.2e}"
    stored = relative_error(ours[2].float().cpu(), exact_pool)
    assert stored < bound, f"{stored:.2e}"


def test_splits_are_joined_by_the_last_one_in_a_thousand_steps() -> None:
    lengths = torch.tensor([300, 700], device="cuda")
    start = torch.tensor([0, 1000], device="cuda")
    pool = torch.randn(1, 2, 2000, 16, 64, device="cuda", dtype=torch.bfloat16)
    qkv = torch.randn(2, 3, 16, 64, device="cuda", dtype=torch.bfloat16)
    arrived = torch.zeros(SPLIT_PAIRS, dtype=torch.int32, device="cuda")
    first = decode_attention(qkv, None, pool, arrived, 0, start, lengths)
    again = [decode_attention(qkv, None, pool, arrived, 0, start, lengths) for _ in range(1000)]
    assert all(torch.equal(each, first) for each in again)
    assert not arrived.any()


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("product", kernels.PRODUCTS.values(), ids=kernels.PRODUCTS)
def test_products_agree_with_the_cpus(product: kernels.Product, dtype: torch.dtype, rows: int) -> None:
    outputs, inputs, activation, optional = product
    generator = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    x, weight = random(rows, inputs), random(outputs * (2 if activation == "swiglu" else 1), inputs) * inputs**-0.5
    parts = {
        "bias": random(outputs),
        "residual": random(rows, outputs),
        "gain": random(inputs),
        "shift": random(inputs),
    }
    parts = {name: value for name, value in parts.items() if name in optional}
    residual = parts.pop("residual", None)
    own, added = {name: value.cuda() for name, value in parts.items()}, None if residual is None else residual.cuda()
    got = Projection(weight.cuda(), **own, activation=activation)(x.cuda(), added)
    wide, added = {name: value.float() for name, value in parts.items()}, None if residual is None else residual.float()
    exact = Projection(weight.float(), **wide, activation=activation)(x.float(), added)
    error = relative_error(got.float().cpu(), exact)
    # cuBLAS computes GELU in the product's kernel, by an undocumented formula
    exactly = 1e-4 if activation == "gelu" else 1e-5
    assert error < (exactly if dtype == torch.float32 else 1e-2), f"{error:.2e}"


@torch.inference_mode()
def test_every_kernel_that_is_measured_does_what_torch_does() -> None:
    for case in kernels.cases():
        torch.cuda.synchronize()
        # torch's first: ours overwrites the residual with the result
        torchs, ours = (part if isinstance(part, tuple) else (part,) for part in (case.torchs(), case.ours()))
        for got, exact in zip(ours, torchs, strict=True):
            assert isinstance(got, torch.Tensor)
            assert isinstance(exact, torch.Tensor)
            if case.kernel == "decode attention":  # torch's does not store the new position first
                continue
            same = exact.transpose(1, 2).flatten(2) if case.kernel == "flow attention" else exact
            error = relative_error(got.float(), same.float())
            assert error < 2e-2, f"{case.kernel}, {case.name}: {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_prompts_behind_prefixes_take_the_memory_efficient_kernel(dtype: torch.dtype) -> None:
    dims = LlamaDims(layers=1)
    generator = torch.Generator().manual_seed(0)
    exact = KVCache(dims, 2048, device=torch.device("cpu"), dtype=torch.float32)
    exact.data.normal_(generator=generator)
    cache = KVCache(dims, 2048, device=torch.device("cuda"), dtype=dtype)
    cache.data.copy_(exact.data)
    new = [torch.randn(3, 64, dims.heads, dims.head_dim, generator=generator) for _ in range(3)]
    places = torch.tensor([[64, 1024, exact.scratch], [376, 90, 0], [63, 20, 0]])  # the last row is padding
    expected = prompt_attention(*new, exact.data[0], Context.of(exact, *places, length=64, reach=440))
    context = Context.of(cache, *places.cuda(), length=64, reach=440)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # fails if that kernel does not support it
        got = prompt_attention(*(part.to("cuda", dtype) for part in new), cache.data[0], context).float().cpu()
    for row, last in enumerate((63, 20)):
        error = relative_error(got[row, : last + 1], expected[row, : last + 1])
        assert error < (1e-5 if dtype == torch.float32 else 1e-2), f"{error:.2e}"


@pytest.fixture(params=["tiny", "tiny-turbo", "tiny-flash"])
def checkpoint(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Checkpoint:
    return checkpoint_of(request.param)


def loop_on(
    checkpoint: Checkpoint,
    device: str,
    *,
    graphs: bool,
    compile_mode: str | None = None,
    dtype: torch.dtype = torch.float32,
    quantization: str = "none",
) -> Loop:
    where = torch.device(device)
    served = Served.of(checkpoint, where, dtype=dtype, quantization=quantization)
    loop = served.loop(cache_len=512)
    loop.cache = KVCache(checkpoint.dims.t3, loop.cache.scratch, device=where, dtype=served.model.dtype)
    captured = Graphs(where, enabled=graphs)
    if compile_mode is None:
        loop.runner = runner_of(served.family, served.model, loop.cache, SLOTS, captured)
    else:
        loop.runner = Runner(
            served.model, loop.cache, SLOTS, family=served.family, graphs=captured, compile_mode=compile_mode
        )
    loop.runner.warm_up(lambda _line: None)
    assert (len(captured) > 0) == graphs
    return loop


def requests(checkpoint: Checkpoint) -> list[Request]:
    served = Served.of(checkpoint)
    return [
        served.supported(
            Request(
                text_length=10 + 9 * number,
                sampling=SamplingParams(cfg_weight=[0.5, 0.0, 1.0][number % 3], top_p=[1.0, 0.8][number % 2]),
                seed=number,
                max_tokens=60,
                arrives=3 * (number // 2),
                prompt_tokens=[None, 70, 20][number % 3],
                cancelled_after=20 if number == 4 else None,
            )
        )
        for number in range(12)
    ]


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # it recommends TF32
@pytest.mark.parametrize("compile_mode", [None, "default"])
@pytest.mark.parametrize("graphs", [False, True])
def test_graphs_and_compilation_change_no_tokens(
    checkpoint: Checkpoint, graphs: bool, compile_mode: str | None
) -> None:
    if compile_mode is not None and checkpoint.family.in_blocks:
        pytest.skip("steps in blocks cannot be compiled: `make_runner` refuses it")
    # Products of float32 in full precision, as on the CPU.
    assert not torch.backends.cuda.matmul.allow_tf32
    expected, got = requests(checkpoint), requests(checkpoint)
    loop_on(checkpoint, "cuda", graphs=False).run(expected)
    loop_on(checkpoint, "cuda", graphs=graphs, compile_mode=compile_mode).run(got)
    same = sum(a.tokens == b.tokens for a, b in zip(expected, got, strict=True))
    # Blocks are padded to other sizes of products, and draw all that they do not know in every pass.
    edges = int(checkpoint.family.in_blocks)
    assert same >= len(expected) - edges, f"{same} of {len(expected)} requests have the same tokens"
    assert all(r.ending for r in got)


def test_the_gpus_tokens_are_the_cpus(checkpoint: Checkpoint) -> None:
    expected, got = requests(checkpoint), requests(checkpoint)
    loop_on(checkpoint, "cpu", graphs=False).run(expected)
    loop_on(checkpoint, "cuda", graphs=True).run(got)
    same = sum(a.tokens == b.tokens for a, b in zip(expected, got, strict=True))
    # A draw at the boundary between two tokens may select either.
    assert same >= len(expected) - 1, f"{same} of {len(expected)} requests have the same tokens"


def test_clips_that_are_encoded_together_make_the_voices_that_each_makes_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as `assemble` does for float32
    encoder = ReferenceEncoder(checkpoint, "cuda")
    lengths = (12.0, 5.5, 30.0, 7.3)
    clips = [encoder.prepare(tone(length, pitch=20 * length)[:, 0], 24_000) for length in lengths]
    for together, clip in zip(encoder.encode(clips), clips, strict=True):
        (alone,) = encoder.encode([clip])
        assert torch.equal(together.t3.prompt_tokens, alone.t3.prompt_tokens)
        assert torch.equal(together.s3gen.prompt_tokens, alone.s3gen.prompt_tokens)
        torch.testing.assert_close(together.t3.speaker, alone.t3.speaker, rtol=0, atol=1e-4)
        torch.testing.assert_close(together.s3gen.embedding, alone.s3gen.embedding, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "mel_bound", "wave_bound"),
    [(torch.float32, 1e-4, 1e-3), (torch.bfloat16, 2e-2, 1e-3), (torch.float16, 2e-2, 1e-3)],
)
@pytest.mark.parametrize("graphs", [False, True])
def test_s3gen_on_the_gpu_agrees_with_the_cpu(
    dtype: torch.dtype, mel_bound: float, wave_bound: float, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as `assemble` does for float32
    for dims in (TINY, dataclasses.replace(TINY, meanflow=True)):
        state = build_upstream(dims).state_dict()
        exact = S3Gen.from_state_dict(state, dims, device=torch.device("cpu"))
        ours = S3Gen.from_state_dict(state, dims, device=torch.device("cuda"), dtype=dtype)
        if graphs:
            ours.capture(Graphs(ours.device, enabled=True), [(4, 60, 40)])
        sizes = [(40, 30), (25, 40), (60, 3)]  # prompt and utterance, tokens

        def jobs(s3gen: S3Gen, dims: S3GenDims = dims, sizes: list[tuple[int, int]] = sizes) -> list[VocoderJob]:
            voices = [s3gen.prepare(random_conditionals(dims, prompt)) for prompt, _ in sizes]
            tokens = [random_tokens(dims, count) for _, count in sizes]
            return [VocoderJob(*each, seed) for seed, each in enumerate(zip(tokens, voices, strict=True))]

        mel, frames = exact.mel(jobs(exact)), [2 * count for _, count in sizes]
        source = draw_source(jobs(exact), exact.device)
        on_gpu = draw_source(jobs(ours), ours.device)
        torch.testing.assert_close(on_gpu.samples.cpu(), source.samples, rtol=0, atol=1e-5)
        got = ours.mel(jobs(ours)).cpu()
        wave, got_wave = exact.vocode(mel, frames, source), ours.vocode(mel.cuda(), frames, on_gpu).cpu()
        for row, count in enumerate(frames):
            error = relative_error(got[row, :count], mel[row, :count])
            assert error < mel_bound, f"row {row}: mel {error:.2e}"
            error = relative_error(got_wave[row, : 480 * count], wave[row, : 480 * count])
            assert error < wave_bound, f"row {row}: wave {error:.2e}"


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
def test_the_flows_attention_agrees_with_torch(dtype: torch.dtype, bound: float) -> None:
    lengths = [1, 127, 128, 700, 1501]
    qkv = torch.randn(len(lengths), 1501, 3, 8, 64, device="cuda").to(dtype)
    got = attend(qkv, torch.tensor(lengths, device="cuda"))
    for row, length in enumerate(lengths):
        q, k, v = qkv[row, :length].double().permute(1, 2, 0, 3)
        exact = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        error = relative_error(got[row, :length].double(), exact)
        assert error < bound, f"{length} positions: {error:.2e}"


@pytest.mark.parametrize(
    ("how", "dtype", "bound"),
    [
        ("none", torch.bfloat16, 2e-2),
        ("none", torch.float16, 2e-2),
        ("int8", torch.bfloat16, 3e-2),
        ("float8", torch.bfloat16, 1e-1),
    ],
)
def test_logits_of_rounded_weights_stay_near_float32_and_graphs_run(
    checkpoint: Checkpoint, how: str, dtype: torch.dtype, bound: float
) -> None:
    if how == "float8" and torch.cuda.get_device_capability() < FLOAT8_CAPABILITY:
        pytest.skip("this GPU has no float8")
    exact = Served.of(checkpoint)
    quantised = Served.of(checkpoint, torch.device("cuda"), dtype=dtype, quantization=how)
    text = Request(text_length=40, sampling=SamplingParams(), seed=3, max_tokens=1).text()
    forced = torch.randint(0, 6561, (24,), generator=torch.Generator().manual_seed(2))
    got = teacher_forced(quantised.model, quantised.voice, text.cuda(), forced.cuda())
    error = relative_error(got.float().cpu(), teacher_forced(exact.model, exact.voice, text, forced))
    assert error < bound, f"{error:.2e}"
    eager, replayed = requests(checkpoint), requests(checkpoint)
    loop_on(checkpoint, "cuda", graphs=False, dtype=dtype, quantization=how).run(eager)
    loop_on(checkpoint, "cuda", graphs=True, dtype=dtype, quantization=how).run(replayed)
    assert all(r.ending for r in (*eager, *replayed))
    if checkpoint.family.in_blocks:  # a token is drawn again in every pass, which rounding would change somewhere
        return
    # With two bytes products of other numbers of rows, which the graphs pad to, may round differently.
    same = sum(a.tokens[:10] == b.tokens[:10] for a, b in zip(eager, replayed, strict=True))
    assert same >= len(eager) // 2, f"{same} of {len(eager)} requests begin with the same tokens"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_whole_engine_speaks_on_the_gpu(checkpoint: Checkpoint, dtype: str) -> None:
    config = Config(checkpoint=str(checkpoint.path), device="cuda", dtype=dtype, max_slots=8, watermark=False)
    engine = assemble.build(config)
    engine.start()
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    for seed in range(8):
        text, sampling = "Hello from the GPU. " * (1 + seed), engine.family.sampling
        engine.submit(SynthesisRequest(text=text, seed=seed, sampling=sampling), answers.put)
    results = [answers.get(timeout=60) for _ in range(8)]
    engine.close()
    assert all(isinstance(result, SynthesisResult) and len(result.samples) > 0 for result in results), results
