"""From settings to a running engine: load, plan memory, start."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch

from chatterbox_engine.checkpoint.checkpoint import Checkpoint, file_names, locate
from chatterbox_engine.checkpoint.dims import GPT2Dims, LlamaDims, T3Dims
from chatterbox_engine.checkpoint.families import CANGJIE, Text, candidates, detect
from chatterbox_engine.config import Config, cores
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.kernels.device import own_stream, reserved_bytes
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.metrics import Metrics, Served
from chatterbox_engine.s3gen import S3Gen
from chatterbox_engine.synthesis.cores import Cores
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.synthesis.finisher import Finisher
from chatterbox_engine.synthesis.parts import Parts
from chatterbox_engine.synthesis.prefixes import PREFIX_BYTES, Prefixes
from chatterbox_engine.synthesis.scheduler import Scheduler
from chatterbox_engine.synthesis.segments import Segmenter
from chatterbox_engine.synthesis.vocoder import Vocoder
from chatterbox_engine.synthesis.watermark import make_watermarker
from chatterbox_engine.t3.gpt2 import GPT2
from chatterbox_engine.t3.kv_cache import KVCache, bytes_per_position
from chatterbox_engine.t3.llama import T3
from chatterbox_engine.t3.quantize import check_quantization, quantize
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.t3.transformer import Transformer
from chatterbox_engine.text.english import EnglishText, TextPreparation
from chatterbox_engine.text.gpt2 import GPT2Text
from chatterbox_engine.text.multilingual import MultilingualText
from chatterbox_engine.types import TOKENS_PER_SECOND
from chatterbox_engine.voices.clips import ClipLimits
from chatterbox_engine.voices.service import Encoder, Voices
from chatterbox_engine.voices.store import VoiceStore

Report = Callable[[str], None]

BACKBONES: dict[type[T3Dims], type[Transformer]] = {LlamaDims: T3, GPT2Dims: GPT2}

TEXTS: dict[Text, Callable[[Checkpoint, Config], TextPreparation]] = {
    "english": lambda checkpoint, _config: EnglishText(checkpoint.tokenizer_path),
    "multilingual": lambda checkpoint, config: MultilingualText(
        checkpoint.tokenizer_path, cangjie=checkpoint.file(CANGJIE), dicta_model=config.dicta_model
    ),
    "gpt2": lambda checkpoint, _config: GPT2Text(checkpoint.tokenizer_path),
}

# Left free on a GPU, beside the vocoder's batches and graphs, for T3's activations and graphs and the clip encoders.
GPU_RESERVE = 2 << 30
LARGEST_VOCODER_MEMORY = 12 << 30

LONG_STEP = 64 << 20
"""Bytes of weights that T3 reads for a step which is worth a second thread."""


def build(
    config: Config,
    *,
    report: Report = lambda _line: None,
    on_failure: Callable[[BaseException], None] | None = None,
    metrics: Metrics | None = None,
) -> Engine:
    """Loads a checkpoint and returns an engine that is not started yet.

    Raises CheckpointError or ConfigError.
    """
    report(f"checkpoint {config.checkpoint}: locating")
    checkpoint = open_checkpoint(config, report)
    family = checkpoint.family
    report(f"it is {family.title}")
    device = choose_device(config.device)
    dtype, vocoder_dtype = choose_dtypes(
        config.dtype, device, report, own_kernel=not config.compile and config.quantization == "none"
    )
    if device.type == "cpu":
        torch.set_num_threads(share_of_cores(config))
        report("kernels for this processor: loading; compiled where they are new, which takes about 15 s")
        from chatterbox_engine.kernels import cpu as cpu_kernels
    else:
        # The host's tensors are small: a team of threads at each of them, for several callers at once, waits more than
        # it works (docs/performance.md, The host).
        torch.set_num_threads(1)
        # What stays float32 beside bfloat16 weights, HiFT, may round its convolutions' factors to TF32's ten bits, as
        # upstream's do on a GPU. Where all is float32 it is for exactness.
        torch.backends.cudnn.allow_tf32 = vocoder_dtype == torch.bfloat16
        # cuDNN's attention makes a plan for every new shape, which costs more than it saves where lengths vary.
        torch.backends.cuda.enable_cudnn_sdp(False)
    check_quantization(config.quantization, device, dtype)
    report(f"loading T3 on {device} in {name_of(dtype)}, S3Gen in {name_of(vocoder_dtype)}")
    backbone = BACKBONES[type(checkpoint.dims.t3)]
    model = backbone.from_state_dict(checkpoint.t3_state(), checkpoint.dims.t3, device=device, dtype=dtype)
    if config.quantization != "none":
        report(f"quantising T3 to {config.quantization}")
        quantize(model, config.quantization)
    s3gen = S3Gen.from_state_dict(
        checkpoint.s3gen_state(),
        checkpoint.dims.s3gen,
        device=device,
        dtype=vocoder_dtype,
        cfm_steps=config.cfm_steps or None,
        prompt_tokens=round(config.prompt_seconds * TOKENS_PER_SECOND),
    )
    max_slots = config.max_slots or choose_slots(checkpoint.dims.t3, family.rows, config.max_cache_len, dtype, device)
    positions = plan_positions(checkpoint.dims.t3, family.rows * max_slots, config.max_cache_len)
    needed = positions * bytes_per_position(checkpoint.dims.t3, dtype)
    check_memory(needed, device, max_slots, family.rows, config, report)
    cache = KVCache(checkpoint.dims.t3, positions, device=device, dtype=dtype)
    graphs = Graphs(device, enabled=config.cuda_graphs)
    constant = {
        "model": config.checkpoint,
        "family": family.name,
        "optimizations": optimizations(config, dtype, graphs),
    }
    served = Served(constant, partial(reserved_bytes, device))
    cpu_cores = Cores(vocoder=vocoder_threads(config, device), t3=t3_threads(config, model))
    parts = Parts(
        segmenter=Segmenter(TEXTS[family.text](checkpoint, config), model.dims, config.segment_chars),
        voices=make_voices(config, checkpoint, device, metrics),
        scheduler=Scheduler(max_slots=max_slots, positions=positions, max_prefills=config.max_prefills),
        runner=Runner(
            model, cache, max_slots, family=family, graphs=graphs, compile_mode=choose_compile_mode(config, graphs)
        ),
        prefixes=Prefixes(model.prefix),
        vocoder=Vocoder(
            s3gen,
            graphs=Graphs(device, enabled=config.cuda_graphs),
            # rows that go one after the other are answered one after the other
            batch=config.vocoder_batch if s3gen.rows_together else 1,
            delay=config.vocoder_delay,
            memory=vocoder_memory(device),
            cores=cpu_cores,
            metrics=metrics,
        ),
        finisher=Finisher(make_watermarker(device, enabled=config.watermark), served, device=device, cores=cpu_cores),
        cores=cpu_cores,
        served=served,
        family=family,
        stop_token=model.dims.stop_speech,
        device=device,
        max_queue=config.max_queue,
        request_timeout=config.request_timeout,
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the engine's threads read what was made here on streams of their own
    else:
        cpu_kernels.release_threads()
    return Engine(parts, report=report, on_failure=on_failure or (lambda _error: None), metrics=metrics)


def open_checkpoint(config: Config, report: Report = lambda _line: None) -> Checkpoint:
    """The configured checkpoint, located and opened. Raises CheckpointError or ConfigError."""
    revision, base_revision = config.revision or None, config.base_revision or None
    if not config.base:
        path = locate(config.checkpoint, revision=revision, family=config.family, report=report)
        return Checkpoint.open(path, family=config.family)
    others = file_names(config.base, revision=base_revision)
    path = locate(config.checkpoint, revision=revision, family=config.family, beside=others, report=report)
    own = file_names(str(path))
    family = detect(own, others, candidates(config.family)).name
    base = locate(config.base, revision=base_revision, family=family, beside=own, report=report)
    return Checkpoint.open(path, base, family=config.family)


def make_voices(config: Config, checkpoint: Checkpoint, device: torch.device, metrics: Metrics | None = None) -> Voices:
    """The built-in voice, the store and the encoders. Raises ConfigError or CheckpointError."""

    def make_encoder() -> Encoder:
        from chatterbox_engine.voices.reference import ReferenceEncoder  # imports upstream: ten seconds

        return ReferenceEncoder(checkpoint, device)

    return Voices(
        built_in=checkpoint.conditionals(),
        identity=checkpoint.identity,
        store=VoiceStore(config.voice_store),
        make_encoder=make_encoder,
        limits=ClipLimits(config.max_clip_mb << 20, config.max_clip_seconds),
        cache_bytes=config.voice_cache_mb << 20,
        encoder_batch=encoder_batch(device),
        prepare_thread=partial(own_stream, device),
        metrics=metrics,
    )


def encoder_batch(device: torch.device) -> int:
    """Clips that go through the encoders together: few enough for their share of GPU_RESERVE (0.15 GB for the scores of
    a clip of 15 s). On a CPU four together take as long as one after the other, and the first would wait for the last.
    """
    return 4 if device.type == "cuda" else 1


def share_of_cores(config: Config) -> int:
    """Threads of one network on a CPU while the other one works too."""
    return config.cpu_threads or max(1, cores() // 2)


def vocoder_threads(config: Config, device: torch.device) -> tuple[int, int] | None:
    """Threads of S3Gen on a CPU, beside other work and alone; None on a GPU.

    One more than is left over: T3's own thread rests too. With more than that libgomp counts more threads than cores,
    the idle ones of T3's team among them, and lets none of them wait awake at its barriers: on two cores a step of T3
    then took 38 to 50 ms instead of 23.
    """
    if device.type != "cpu":
        return None
    share = share_of_cores(config)
    return share, share if config.cpu_threads else cores() - share + 1


def t3_threads(config: Config, model: Transformer) -> tuple[int, int] | None:
    """Threads of T3 on a CPU, beside S3Gen and alone, where a step is long: of many weights. None leaves them as they
    are."""
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return vocoder_threads(config, model.device) if size >= LONG_STEP else None


def choose_device(name: str) -> torch.device:
    """The device of a setting. Raises ConfigError when it does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}, which torch does not know") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r} but torch sees no CUDA device")
    return device


def name_of(dtype: torch.dtype) -> str:
    """As people write it: float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def choose_dtypes(
    name: str, device: torch.device, report: Report, *, own_kernel: bool = True
) -> tuple[torch.dtype, torch.dtype]:
    """The types of T3's and of S3Gen's weights: bfloat16 where the device multiplies it in hardware, else float32.

    A CPU without gets T3 in bfloat16 all the same: reading the weights is most of a step, and our kernel makes float32
    of them on the way (own_kernel), which neither compiled steps nor quantised prompts have.
    """
    if name != "auto":
        chosen = torch.bfloat16 if name == "bfloat16" else torch.float32
        return chosen, chosen
    if device.type == "cuda":
        has_bfloat16, what = torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name(device)
    else:
        # AVX512-BF16 also comes with every processor that has AMX.
        has_bfloat16, what = torch.cpu._is_avx512_bf16_supported(), "this processor"
    if has_bfloat16:
        return torch.bfloat16, torch.bfloat16
    if device.type == "cpu" and own_kernel:
        report(f"{what} has no bfloat16: S3Gen is float32, which is slower, and T3's weights are stored in bfloat16")
        return torch.bfloat16, torch.float32
    report(f"{what} has no bfloat16: using float32, which is slower")
    return torch.float32, torch.float32


# torch.compile's modes that capture CUDA graphs themselves, which cannot happen inside our captures.
_WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


def choose_compile_mode(config: Config, graphs: Graphs) -> str | None:
    """The mode for torch.compile, or None for not compiling."""
    if not config.compile:
        return None
    return _WITHOUT_GRAPHS.get(config.compile_mode, config.compile_mode) if graphs.enabled else config.compile_mode


def plan_positions(dims: T3Dims, rows: int, max_cache_len: int) -> int:
    """KV positions of the pool: `max_cache_len` a row, and at least the longest possible request of two rows."""
    return max(rows * max_cache_len, 2 * (dims.longest + 64))


def choose_slots(dims: T3Dims, rows: int, max_cache_len: int, dtype: torch.dtype, device: torch.device) -> int:
    """Slots where the settings name no number: as many as the memory holds, up to what suits the device."""
    each = rows * max_cache_len * bytes_per_position(dims, dtype)
    return max(1, min(64 if device.type == "cuda" else 16, cache_memory(device) // each))


def total_memory(device: torch.device) -> int:
    """Bytes of the device, or of the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def vocoder_memory(device: torch.device) -> int:
    """Bytes for one batch of S3Gen: a quarter of all, up to what 16 utterances of 40 s take."""
    return min(LARGEST_VOCODER_MEMORY, total_memory(device) // 4)


def cache_memory(device: torch.device) -> int:
    """Bytes for the KV cache: on a GPU what the weights, prefixes, S3Gen's batches with their graphs and the reserve
    leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] - GPU_RESERVE - PREFIX_BYTES - vocoder_memory(device) * 5 // 4
    return total_memory(device)


def check_memory(needed: int, device: torch.device, max_slots: int, rows: int, config: Config, report: Report) -> None:
    """Refuses a cache that cannot fit, with the numbers. Raises ConfigError."""
    free = cache_memory(device)
    each = "1 row" if rows == 1 else f"{rows} rows"
    plan = f"KV cache: {max_slots} slots of {each} of {config.max_cache_len} positions, {needed / 1e9:.2f} GB"
    report(f"{plan}; {free / 1e9:.1f} GB free on {device}")
    if needed > free:
        raise ConfigError(
            f"{plan}, but {device} has {free / 1e9:.2f} GB for it: "
            "lower CHATTERBOX_MAX_SLOTS or CHATTERBOX_MAX_CACHE_LEN"
        )


def optimizations(config: Config, dtype: torch.dtype, graphs: Graphs) -> list[str]:
    """What is switched on, for statistics and metrics."""
    active = ["continuous_batching", "kv_pool", "fused_projections"]
    if dtype == torch.bfloat16:
        active.append("bfloat16")
    if config.quantization != "none":
        active.append(config.quantization)
    if graphs.enabled:
        active.append("cuda_graphs")
    if config.compile:
        active.append("torch_compile")
    return active
