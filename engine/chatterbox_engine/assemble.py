"""From settings to a running engine: load, plan memory, start."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from chatterbox_engine.checkpoint.checkpoint import (
    Checkpoint,
    choices_of,
    choose,
    fetch,
    file_names,
    locate,
    locate_vocoder,
)
from chatterbox_engine.checkpoint.detect import PACK_BASE, PACKS
from chatterbox_engine.checkpoint.dims import FlashDims, GPT2Dims, LlamaDims, T3Dims
from chatterbox_engine.checkpoint.families import CANGJIE, Text
from chatterbox_engine.checkpoint.heads import AUTO, NONE, alignment_heads
from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.gpu_share import GpuShare
from chatterbox_engine.hardware import (
    Report,
    choose_device,
    choose_dtypes,
    configure_torch,
    name_of,
    t3_threads,
    vocoder_threads,
)
from chatterbox_engine.kernels.device import cuda, own_stream, reserved_bytes
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.memory_plan import check_memory, choose_slots, plan_positions, vocoder_memory
from chatterbox_engine.metrics import Metrics, Served
from chatterbox_engine.s3gen import S3Gen
from chatterbox_engine.synthesis.cores import Cores
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.synthesis.finisher import Finisher
from chatterbox_engine.synthesis.parts import Parts
from chatterbox_engine.synthesis.prefixes import Prefixes
from chatterbox_engine.synthesis.scheduler import Scheduler
from chatterbox_engine.synthesis.segments import Segmenter
from chatterbox_engine.synthesis.utterances import Utterance
from chatterbox_engine.synthesis.vocoder import Vocoder
from chatterbox_engine.synthesis.watermark import make_watermarker
from chatterbox_engine.t3.block_runner import BlockRunner
from chatterbox_engine.t3.flash import FlashT3
from chatterbox_engine.t3.gpt2 import GPT2
from chatterbox_engine.t3.kv_cache import KVCache, bytes_per_position
from chatterbox_engine.t3.llama import T3
from chatterbox_engine.t3.quantize import check_quantization, quantize
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.t3.transformer import Transformer
from chatterbox_engine.text.english import EnglishText, FlashText, TextPreparation
from chatterbox_engine.text.gpt2 import GPT2Text
from chatterbox_engine.text.lexicon_file import LexiconFile
from chatterbox_engine.text.multilingual import MultilingualText
from chatterbox_engine.types import TOKENS_PER_SECOND, Encoder
from chatterbox_engine.voices.clips import ClipLimits
from chatterbox_engine.voices.service import Voices
from chatterbox_engine.voices.store import VoiceStore

BACKBONES: dict[type[T3Dims], type[Transformer]] = {LlamaDims: T3, FlashDims: FlashT3, GPT2Dims: GPT2}

TEXTS: dict[Text, Callable[[Checkpoint, Config], TextPreparation]] = {
    "english": lambda checkpoint, _config: EnglishText(checkpoint.tokenizer_path),
    "flash": lambda checkpoint, _config: FlashText(checkpoint.tokenizer_path),
    "multilingual": lambda checkpoint, config: MultilingualText(
        checkpoint.tokenizer_path, cangjie=checkpoint.file(CANGJIE), dicta_model=config.dicta_model
    ),
    "gpt2": lambda checkpoint, _config: GPT2Text(checkpoint.tokenizer_path),
}


def build(
    config: Config,
    *,
    report: Report = lambda _line: None,
    on_failure: Callable[[BaseException], None] | None = None,
    metrics: Metrics | None = None,
    number: int = 0,
) -> Engine:
    """Loads a checkpoint and returns an engine that is not started yet. number: its own, among those of its model.

    Raises CheckpointError or ConfigError.
    """
    report(f"checkpoint {config.checkpoint}: locating")
    checkpoint = open_checkpoint(config, report)
    report(f"it is {checkpoint.family.title}: {describe_files(checkpoint)}")
    device = choose_device(config.device)
    dtype, vocoder_dtype = weight_types(config, checkpoint, device, report)
    configure_torch(device, vocoder_dtype, config.cpu_threads)
    load_cpu_kernels(device, dtype, vocoder_dtype, report)
    check_quantization(config.quantization, device, dtype)
    report(f"loading T3 on {device} in {name_of(dtype)}, S3Gen in {name_of(vocoder_dtype)}")
    model = load_t3(config, checkpoint, device, dtype, report)
    s3gen = load_s3gen(config, checkpoint, device, vocoder_dtype)
    runner = make_runner(config, checkpoint, model, report)
    served = Served({**describe(config, checkpoint, runner), "engine": number}, partial(reserved_bytes, device))
    cores = Cores(
        vocoder=vocoder_threads(config.cpu_threads, device),
        t3=t3_threads(config.cpu_threads, device, weight_bytes(model)),
    )
    parts = Parts(
        segmenter=Segmenter(
            TEXTS[checkpoint.family.text](checkpoint, config),
            model.dims,
            config.segment_chars,
            checkpoint.family,
            LexiconFile(config.lexicon_file),
        ),
        voices=make_voices(config, checkpoint, device, metrics),
        scheduler=make_scheduler(config, runner),
        runner=runner,
        prefixes=Prefixes(model.prefix),
        vocoder=make_vocoder(config, s3gen, cores, metrics),
        finisher=Finisher(make_watermarker(device, enabled=config.watermark), served, device=device, cores=cores),
        cores=cores,
        served=served,
        family=checkpoint.family,
        stop_token=model.dims.stop_speech,
        aligned=isinstance(runner, Runner) and runner.alignment is not None,
        usual_peak=alignment_heads(config.alignment_heads, checkpoint).peak,
        device=device,
        max_queue=config.max_queue,
        max_batch_queue=config.max_batch_queue,
        request_timeout=config.request_timeout,
    )
    hand_over(device)
    return Engine(parts, report=report, on_failure=on_failure or (lambda _error: None), metrics=metrics)


def weight_types(
    config: Config, checkpoint: Checkpoint, device: torch.device, report: Report
) -> tuple[torch.dtype, torch.dtype]:
    """The types of T3's and of S3Gen's weights, by the settings and by what multiplies T3's."""
    products = products_of(config, checkpoint.dims.t3)
    return choose_dtypes(
        config.dtype,
        device,
        report,
        fused_products=products == "fused",
        packed_products=products == "packed",
    )


def products_of(config: Config, dims: T3Dims) -> Literal["fused", "packed", "plain"]:
    """How T3 multiplies the rows of a step: `fused`, by kernels that also compute norm, activation and residual sum;
    `packed`, Flash's many rows, which on a CPU are oneDNN's unless they are float16; `plain`, what is quantised or
    compiled."""
    if config.quantization != "none":
        return "plain"
    if isinstance(dims, FlashDims):
        return "packed"
    return "plain" if config.compile else "fused"


def load_cpu_kernels(device: torch.device, t3: torch.dtype, vocoder: torch.dtype, report: Report) -> None:
    """Compiles the CPU kernels for these types of weights or loads them from the cache. Does nothing on a GPU."""
    if device.type == "cpu":
        report("kernels for this processor: loading; compiled where they are new, which takes about 20 s")
        from chatterbox_engine.kernels.cpu.loading import load

        load(t3, vocoder)


def load_t3(
    config: Config, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, report: Report
) -> Transformer:
    """T3's weights on the device, quantised where the settings say so. Raises CheckpointError."""
    dims = checkpoint.dims.t3
    model = BACKBONES[type(dims)].from_state_dict(checkpoint.t3_state(), dims, device=device, dtype=dtype)
    if config.quantization != "none":
        report(f"quantising T3 to {config.quantization}")
        quantize(model, config.quantization)
    return model


def load_s3gen(config: Config, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> S3Gen:
    """S3Gen's weights on the device. Raises CheckpointError."""
    return S3Gen.from_state_dict(
        checkpoint.s3gen_state(),
        checkpoint.dims.s3gen,
        device=device,
        dtype=dtype,
        cfm_steps=config.cfm_steps or None,
        prompt_tokens=round(config.prompt_seconds * TOKENS_PER_SECOND),
    )


def make_runner(config: Config, checkpoint: Checkpoint, model: Transformer, report: Report) -> Runner | BlockRunner:
    """T3's runner with as many slots as the settings or the memory allow.

    Raises ConfigError when its cache does not fit, or the settings name a head that there is not or what the family
    does not support, and CheckpointError for heads that are kept and cannot be read.
    """
    dims, family, device = checkpoint.dims.t3, checkpoint.family, model.device
    share = GpuShare.parse(config.gpu_memory)
    max_slots = config.max_slots or choose_slots(dims, family.rows, config.max_cache_len, model.dtype, device, share)
    positions = plan_positions(dims, family.rows * max_slots, config.max_cache_len)
    check_memory(
        positions * bytes_per_position(dims, model.dtype),
        device,
        max_slots=max_slots,
        rows=family.rows,
        max_cache_len=config.max_cache_len,
        report=report,
        share=share,
    )
    cache = KVCache(dims, positions, device=device, dtype=model.dtype)
    graphs = Graphs(device, enabled=config.cuda_graphs)
    compile_mode = choose_compile_mode(config, graphs)
    if isinstance(model, FlashT3):
        if compile_mode is not None:
            raise ConfigError(f"compile is on, which {family.title} does not support")
        if config.alignment_heads not in (AUTO, NONE):
            raise ConfigError(f"alignment_heads is {config.alignment_heads!r}; {family.title} supports none")
        return BlockRunner(model, cache, max_slots, graphs=graphs)
    heads = alignment_heads(config.alignment_heads, checkpoint)
    return Runner(model, cache, max_slots, family=family, graphs=graphs, compile_mode=compile_mode, heads=heads.heads)


def make_scheduler(config: Config, runner: Runner | BlockRunner) -> Scheduler[Utterance]:
    """The scheduler of the runner's slots. Raises ConfigError when it could never admit batch work."""
    if config.live_slots >= runner.max_slots:
        raise ConfigError(
            f"live_slots is {config.live_slots}; it must be below the number of slots, {runner.max_slots}"
        )
    return Scheduler(
        max_slots=runner.max_slots,
        positions=runner.cache.scratch,
        max_prefills=config.max_prefills,
        live_slots=config.live_slots,
    )


def make_vocoder(config: Config, s3gen: S3Gen, cores: Cores, metrics: Metrics | None) -> Vocoder:
    """S3Gen's queue, with graphs of its own."""
    return Vocoder(
        s3gen,
        graphs=Graphs(s3gen.device, enabled=config.cuda_graphs),
        # each row is answered as soon as it is vocoded
        batch=config.vocoder_batch if s3gen.batching.together else 1,
        delay=config.vocoder_delay,
        memory=vocoder_memory(s3gen.device, GpuShare.parse(config.gpu_memory)),
        cores=cores,
        metrics=metrics,
    )


def weight_bytes(model: Transformer) -> int:
    """Bytes of a model's weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def hand_over(device: torch.device) -> None:
    """Waits for the calling thread's pending GPU work, so that the engine's threads can use its results."""
    if device.type == "cuda":
        cuda().synchronize(device)  # they read it on streams of their own
    else:
        from chatterbox_engine.kernels.cpu.launch import release_threads

        release_threads()


def open_checkpoint(config: Config, report: Report = lambda _line: None) -> Checkpoint:
    """The configured checkpoint, located and opened. Raises CheckpointError or ConfigError."""
    revision, base_revision = config.revision or None, config.base_revision or None
    base_name = config.base or (PACK_BASE if config.checkpoint in PACKS else "")
    # a name without a folder is that of a file of the checkpoint itself
    elsewhere = config.vocoder and ("/" in config.vocoder or not config.vocoder.endswith((".safetensors", ".pt")))
    s3gen = None if elsewhere else config.vocoder
    vocoder = locate_vocoder(config.vocoder, report=report) if elsewhere else None
    family, others = config.family, file_names(base_name, revision=base_revision) if base_name else []
    path = locate(config.checkpoint, revision=revision, family=family, s3gen=s3gen, beside=others, report=report)
    own, base = file_names(str(path)), None
    chosen = choose(path, others, family=family, s3gen=s3gen)
    if path == Path(config.checkpoint).expanduser():  # of a repository, `locate` has told it
        for line in choices_of(path, chosen):
            report(line)
    if base_name:
        wanted = [name for name in chosen.files.all if name in others and name not in own]
        base = fetch(base_name, wanted, revision=base_revision, report=report)
    return Checkpoint.open(path, base, family=family, s3gen=s3gen, vocoder=vocoder)


def describe_files(checkpoint: Checkpoint) -> str:
    """What of a checkpoint is served, for the log."""
    family, s3gen = checkpoint.family, checkpoint.s3gen_file
    flow = " (MeanFlow)" if checkpoint.dims.s3gen.meanflow else ""
    language = f", default language {family.language}" if len(family.languages) > 1 else ""
    return f"{family.files.t3}, {s3gen if checkpoint.vocoder else s3gen.name}{flow}{language}"


def make_voices(config: Config, checkpoint: Checkpoint, device: torch.device, metrics: Metrics | None = None) -> Voices:
    """The built-in voice, the store and the encoders. Raises ConfigError or CheckpointError."""

    def make_encoder() -> Encoder:
        from chatterbox_engine.voices.reference import ReferenceEncoder  # imports upstream: ten seconds

        encoder = ReferenceEncoder(checkpoint, device)
        gc.freeze()  # upstream's objects stay; garbage collection that scans them stops every thread
        return encoder

    return Voices(
        built_in=checkpoint.conditionals(),
        identity=checkpoint.identity,
        store=VoiceStore(config.voice_store),
        make_encoder=make_encoder,
        limits=ClipLimits(config.max_clip_mb << 20, config.max_clip_seconds),
        cache_bytes=config.voice_cache_mb << 20,
        encoder_batch=encoder_batch(device),
        ahead=config.preload_encoders,
        prepare_thread=partial(own_stream, device),
        metrics=metrics,
    )


def encoder_batch(device: torch.device) -> int:
    """Clips that go through the encoders together: few enough for their share of GPU_RESERVE (0.15 GB for the scores of
    a clip of 15 s). On a CPU, four together take as long as four in sequence, and the first would wait for the last.
    """
    return 4 if device.type == "cuda" else 1


# torch.compile's modes that capture CUDA graphs themselves, which cannot happen inside our captures.
_WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


def choose_compile_mode(config: Config, graphs: Graphs) -> str | None:
    """The mode for torch.compile, or None for not compiling."""
    if not config.compile:
        return None
    return _WITHOUT_GRAPHS.get(config.compile_mode, config.compile_mode) if graphs.enabled else config.compile_mode


def describe(config: Config, checkpoint: Checkpoint, runner: Runner | BlockRunner) -> dict[str, Any]:
    """The constant entries of every response's statistics."""
    return {
        "model": config.checkpoint,
        "family": checkpoint.family.name,
        "device": str(runner.model.device),
        "optimizations": optimizations(config, runner.model, runner.graphs),
    }


def optimizations(config: Config, model: Transformer, graphs: Graphs) -> list[str]:
    """The enabled optimizations, for statistics and metrics."""
    active = ["continuous_batching", "kv_pool"]
    products, dtype, on_cpu = products_of(config, model.dims), model.dtype, model.device.type == "cpu"
    if products == "packed" and on_cpu:
        active.append("fused_projections" if dtype == torch.float16 else "packed_projections")
    elif products == "fused" and (on_cpu or dtype.itemsize == 2):
        active.append("fused_projections")
    if dtype != torch.float32:
        active.append(name_of(dtype))
    if config.quantization != "none":
        active.append(config.quantization)
    if graphs.enabled:
        active.append("cuda_graphs")
    if config.compile:
        active.append("torch_compile")
    return active
