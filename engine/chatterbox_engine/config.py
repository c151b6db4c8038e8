"""All settings of an engine, validated once.

A setting `max_slots` is named `max_slots` in the file that `CHATTERBOX_CONFIG` names, `CHATTERBOX_MAX_SLOTS` in the
environment, and `max_slots` among the `parameters` of a config.pbtxt. Later ones of these win: the environment over a
file that several servers share, a model's own parameters over both, so that two models of one server can differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from chatterbox_engine.environment import PREFIX, cache_folder
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.gpu_share import GpuShare
from chatterbox_engine.origins import parse_origins
from chatterbox_engine.presets import PRESETS

FILE_VARIABLE = f"{PREFIX}CONFIG"
"""Names a YAML file of settings."""

_GATEWAY = "GATEWAY_"
"""Begins the names of the gateway's settings, which are its own."""

# Read by other parts of the project (launcher, client, caches), so not unknown here.
_FOREIGN = {
    "CONFIG",
    "TRITON_HOME",
    "MODEL_REPOSITORY",
    "INSTANCES",
    "IDLE_UNLOAD",
    "URL",
    "GRPC_URL",
    "METRICS_URL",
    "HEADERS",
    "CACHE",
    "SOCKETS",
}

# Names that the well-known Chatterbox servers use for the same things.
_ALIASES = {
    "USE_TORCH_COMPILE": "compile",
    "TORCH_COMPILE_MODE": "compile_mode",
    "USE_OPTIMIZATIONS": "use_optimizations",
    "USE_FP16": "use_fp16",
}

_SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "use_optimizations": {"cuda_graphs": False, "compile": False, "dtype": "float32", "quantization": "none"},
    "use_fp16": {"dtype": "float32"},
}
"""What a switch sets when it is off."""

_SWITCHED_ON: Mapping[str, Mapping[str, Any]] = {"use_fp16": {"dtype": "float16"}}
"""What a switch sets when it is on; the others change nothing then."""

_IGNORED = {
    "MAX_WORKERS": "requests are decoded together, at most CHATTERBOX_MAX_SLOTS at once",
}
"""Names of these servers that change nothing here, and what does."""


def read_key(name: str, path: Path) -> bytes:
    """The key in a file, without the white space around it. Raises ConfigError, naming the setting `name`."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{name}: {path} cannot be read: {error.strerror}") from error
    if not key:
        raise ConfigError(f"{name}: {path} is empty")
    return key


CHOICES: Mapping[str, tuple[str, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantization": ("none", "int8", "float8"),
    "preset": tuple(PRESETS),
    "request_log": ("off", "text", "json"),
    "compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
"""Settings that take one of a few words."""

RANGES: Mapping[str, tuple[float, float]] = {
    "cpu_threads": (0, 1024),
    "max_slots": (0, 1024),
    "live_slots": (0, 1024),
    "max_cache_len": (128, 16_384),
    "max_queue": (1, 100_000),
    "max_batch_queue": (1, 100_000),
    "max_prefills": (1, 64),
    "request_timeout": (0.1, 86_400),
    "max_text_chars": (1, 1_000_000),
    "segment_chars": (40, 1000),
    "max_seconds": (0.04, 160.0),
    "cfm_steps": (0, 100),
    "prompt_seconds": (1.0, 10.0),
    "vocoder_batch": (1, 128),
    "vocoder_delay": (0.0, 1.0),
    "voice_cache_mb": (1, 1_000_000),
    "max_clip_mb": (1, 1024),
    "max_clip_seconds": (1.0, 3600.0),
}
"""The smallest and the largest value of each number."""


@dataclass(frozen=True)
class Config:
    """Settings of one engine. `docs/settings.md` has the table made of these fields (`make settings`).

    Raises ConfigError on a value that cannot work.
    """

    checkpoint: str = "demo"
    """What to serve: a folder in the official layout, a Hugging Face repository id, `demo` (the voice that comes with
    the project), or random weights for tests: `tiny`, `tiny-multilingual`, `tiny-turbo`, `tiny-nano`, `tiny-flash`."""
    base: str = ""
    """Folder or repository that supplies the files which the checkpoint lacks, for a folder that holds only a
    fine-tuned T3. For the repositories of the [Single Language Pack](models.md#single-language-pack) it is
    `ResembleAI/chatterbox` by default."""
    family: str = "auto"
    """Model to serve from a folder that holds several: `english`, `multilingual-v3`, `multilingual-v2`, `turbo`, `nano`
    or `flash`. `auto` takes the first of these whose files are there, and the log tells what else there is."""
    vocoder: str = ""
    """S3Gen in place of the checkpoint's: a file, a folder, a repository (`ResembleAI/chatterbox-turbo`), or the name
    of another file of the checkpoint. See [The vocoder](models.md#the-vocoder)."""
    revision: str = ""
    """Commit or tag of the checkpoint's Hugging Face repository; the newest when empty."""
    base_revision: str = ""
    """Commit or tag of the base's Hugging Face repository; the newest when empty."""
    dicta_model: str = ""
    """Path of the ONNX file of the package `dicta_onnx`, which adds vowel points to Hebrew text (Multilingual)."""
    device: str = "auto"
    """`cuda`, `cuda:1`, `cpu`, or `auto`: CUDA where there is a GPU."""
    dtype: str = "auto"
    """Type of the weights of T3 and of S3Gen's encoder and flow: `float32`, `bfloat16`, `float16`. `auto` takes
    bfloat16 on GPUs that have it and on CPUs with AMX or, of AMD's, AVX512-BF16; float16 on other GPUs and on CPUs
    with AVX512-FP16, where a compiled or quantised T3 is bfloat16. On other CPUs S3Gen and Flash are float32, and T3 is
    stored in bfloat16, unless it is compiled or quantised and the CPU has no bfloat16. `float16` is the same as `auto`
    on a CPU without AVX512-FP16."""
    quantization: str = "none"
    """`int8`: T3's blocks in a quarter of the memory of float32, half of bfloat16. `float8`: the same size, and the
    products are computed in float8 too; needs a GPU of compute capability 8.9 or more, and bfloat16."""
    alignment_heads: str = "auto"
    """Attention heads of T3 that follow the text, for word times and the guard: a list of layers and heads like
    `12:15,13:11,9:2`, `none`, or `auto`: those that `python -m tools.alignment` has found for the checkpoint, else its
    own."""
    gpu_memory: str = ""
    """GPU memory that the engine plans with, where others use the GPU too: a fraction of it (`0.5`), or an amount
    (`20GB`, `16GiB`). What CUDA needs for itself, about 0.5 GB, comes on top. Empty: what is free."""
    cpu_threads: int = 0
    """Threads of each network on a CPU. 0 shares the cores (at most `OMP_NUM_THREADS`) between T3 and S3Gen, which run
    at the same time."""
    max_slots: int = 0
    """Utterances decoded together. 0 chooses up to 64 on a GPU and up to 16 on a CPU, fewer where memory is short."""
    live_slots: int = 0
    """Slots that requests of priority `batch` never get, so that live ones find one free. Without a free one, a live
    request takes the slot of a batch one, which starts again later."""
    max_cache_len: int = 1200
    """Positions of the KV cache planned for each row. A longer request takes more from the common pool."""
    max_queue: int = 256
    """Requests in progress; one more is answered with 503. Those of priority `batch` are counted separately."""
    max_batch_queue: int = 256
    """Requests of priority `batch` in progress; one more is answered with 503."""
    max_prefills: int = 4
    """Utterances that may join in one step. More would delay the tokens of those that decode already."""
    request_timeout: float = 300.0
    """Seconds from arrival after which a request is cancelled and answered with 503."""
    max_text_chars: int = 10_000
    """Longest text of a request, in characters."""
    segment_chars: int = 300
    """Text longer than this is split at sentences into segments of about this many characters."""
    lexicon_file: str = ""
    """YAML or JSON file of pronunciations: see [Lexicons](api.md#lexicons). A changed file is read again."""
    preset: str = "upstream"
    """Preset of requests that name none: see [Presets](api.md#presets)."""
    max_seconds: float = 160.0
    """Largest `max_seconds` that a request may ask for, for each segment."""
    watermark: bool = True
    """Apply Perth's inaudible watermark, as upstream does."""
    cuda_graphs: bool = True
    """Capture CUDA graphs at the start. Without them the server starts sooner and decodes more slowly."""
    compile: bool = False
    """Compile the decode step with torch.compile."""
    compile_mode: str = "default"
    """Mode of torch.compile. The two modes that capture CUDA graphs themselves do not while `cuda_graphs` is on.
    Compiled code is kept in `TORCHINDUCTOR_CACHE_DIR`."""
    cfm_steps: int = 0
    """Euler steps of S3Gen's flow. 0 takes upstream's number: 10, or 2 for MeanFlow (Turbo, Nano, Flash)."""
    prompt_seconds: float = 10.0
    """Seconds of a voice's clip that S3Gen is conditioned on. It processes them again for every utterance and every
    chunk, so fewer are much cheaper: see [Tuning](performance.md#tuning)."""
    vocoder_batch: int = 16
    """Segments turned into audio together on a GPU. A CPU processes one after the other."""
    vocoder_delay: float = 0.0
    """Seconds that a finished segment may wait for others to share its vocoder batch."""

    voice_store: str = field(default_factory=lambda: str(cache_folder() / "voices.sqlite"))
    """Where voices are kept: an SQLite file, or the URL of a PostgreSQL database
    (`postgresql://user:password@host/database`)."""
    voice_cache_mb: int = 512
    """Memory for voices in MB, about 0.2 MB each. The least recently used ones are dropped first."""
    voice_key: str = field(default="", repr=False)
    """Key that a request must send to add or delete a voice. Without one nobody can."""
    voice_key_file: str = ""
    """File that holds the key, instead of `voice_key`."""
    allowed_origins: str = ""
    """Web origins (`https://app.example.com`, separated by commas) whose pages may use the server: see
    [Access](deploy.md#access)."""
    request_log: str = "text"
    """A line of the log for each request that ends: `off`, `text`, or `json` (a line of its own on stdout)."""
    preload_encoders: bool = True
    """Load the encoders of clips once the server is ready, and encode voices that are added at once. Off, both wait for
    the first request that needs them, which saves 0.6 GB of memory until then."""
    max_clip_mb: int = 32
    """Largest file of a reference clip, in MB."""
    max_clip_seconds: float = 120.0
    """Longest reference clip, in seconds."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must be between {low} and {high}")
        for name, words in CHOICES.items():
            value = getattr(self, name)
            if value not in words:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(words)}")
        if self.voice_key and self.voice_key_file:
            raise ConfigError("voice_key and voice_key_file exclude each other")
        parse_origins(self.allowed_origins)
        GpuShare.parse(self.gpu_memory)
        self.change_key()

    def change_key(self) -> bytes | None:
        """The key that changes of voices need; None when there is none and nobody may change them.

        Raises ConfigError when the file that holds it cannot be read or holds nothing.
        """
        if not self.voice_key_file:
            return self.voice_key.encode() or None
        return read_key("voice_key_file", Path(self.voice_key_file))

    @classmethod
    def load(cls, parameters: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None) -> Config:
        """Settings from all sources, `resolve`. Raises ConfigError."""
        return cls(**{name: setting.value for name, setting in resolve(parameters, environment).items()})


@dataclass(frozen=True)
class Setting:
    """A value, and the name under which it was given."""

    value: Any
    source: str


def resolve(
    parameters: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Setting]:
    """Every setting that a source gives; the last source wins.

    Raises ConfigError for an unknown name, a value that does not parse, and two names of one source that contradict
    each other.
    """
    environment = os.environ if environment is None else environment
    file = environment.get(FILE_VARIABLE)
    named = ((name, setting, text) for name, text in environment.items() if (setting := _setting_of(name)))
    own = ((f"config.pbtxt: {name}", name, text) for name, text in (parameters or {}).items())
    return {**(_collect(_read(Path(file))) if file else {}), **_collect(named), **_collect(own)}


def ignored(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable of other servers that is set and changes nothing here."""
    return [f"{name} is ignored: {why}" for name, why in _IGNORED.items() if name in environment]


def _collect(entries: Iterable[tuple[str, str, Any]]) -> dict[str, Setting]:
    """The settings of one source, whose entries are (what to call it, setting, value)."""
    found: dict[str, Setting] = {}
    for source, name, given in entries:
        if name not in _TYPES:
            raise ConfigError(f"unknown setting {source}")
        value = _parse(source, name, given)
        meant = {name: value} if name not in _SWITCHES else (_SWITCHED_ON if value else _SWITCHES).get(name, {})
        for setting, wanted in meant.items():
            before = found.get(setting)
            if before is not None and before.value != wanted:
                raise ConfigError(f"{before.source} and {source} contradict each other about {setting}")
            found[setting] = Setting(wanted, source)
    return found


def _read(path: Path) -> list[tuple[str, str, Any]]:
    """The entries of a YAML file: a mapping from settings to values."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{FILE_VARIABLE}: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{FILE_VARIABLE}: {path} must hold lines of the form `max_slots: 32`")
    return [(f"{path}: {name}", str(name), value) for name, value in content.items()]


_TYPES = {**get_type_hints(Config), **dict.fromkeys(_SWITCHES, bool)}

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def _setting_of(name: str) -> str | None:
    """The setting that an environment variable means, or None for one that is not ours."""
    if name in _ALIASES:
        return _ALIASES[name]
    own = name.removeprefix(PREFIX)
    if own == name or own in _FOREIGN or own.startswith(_GATEWAY):
        return None
    return own.lower()


def _parse(name: str, setting: str, given: Any) -> Any:
    """A value of the setting's type, from a text or from what YAML makes of one."""
    kind, text = _TYPES[setting], str(given)
    if kind is bool:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise ConfigError(f"{name} is {text!r}; it must be 1 or 0")
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}; it must be of type {kind.__name__}") from error
