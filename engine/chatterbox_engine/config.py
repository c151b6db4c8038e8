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
from chatterbox_engine.presets import PRESETS

FILE_VARIABLE = f"{PREFIX}CONFIG"
"""Names a YAML file of settings."""

# Read by other parts of the project (launcher, client, caches), so not unknown here.
_FOREIGN = {"CONFIG", "TRITON_HOME", "MODEL_REPOSITORY", "URL", "GRPC_URL", "OPENAI_KEYS", "CACHE", "SOCKETS"}

# Names that the well-known Chatterbox servers use for the same things.
_ALIASES = {
    "USE_TORCH_COMPILE": "compile",
    "TORCH_COMPILE_MODE": "compile_mode",
    "USE_OPTIMIZATIONS": "use_optimizations",
}

_SWITCH = "use_optimizations"
_PLAIN: Mapping[str, Any] = {"cuda_graphs": False, "compile": False, "dtype": "float32", "quantization": "none"}
"""What the switch means when it is off; on, it leaves every setting as it is."""


QUANTIZATIONS = ("none", "int8", "float8")

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Config:
    """Settings of one engine.

    Raises ConfigError on a value that cannot work.
    """

    checkpoint: str = "demo"
    """A folder in the official layout, a Hugging Face repository id, `demo`, or `tiny` (see `checkpoint.locate`)."""
    base: str = ""
    """Where the files come from that the checkpoint lacks: one that has them all, for a folder with only a fine-tuned
    T3."""
    family: str = "auto"
    """Which model to serve of a folder that holds several: `english`, `multilingual-v3`, `multilingual-v2`, `turbo`,
    `nano`; `auto` takes the first of these whose files are there."""
    revision: str = ""
    """Commit or tag of the Hugging Face repository; empty for its newest."""
    base_revision: str = ""
    """The same of the base's repository."""
    dicta_model: str = ""
    """The ONNX file of the package dicta_onnx, which points the Hebrew of the multilingual models."""
    device: str = "auto"
    """`auto` (CUDA when there is one), `cuda`, `cuda:1`, `cpu`."""
    dtype: str = "auto"
    """The weights of T3 and of S3Gen's encoder and flow: `bfloat16`, `float32`, or `auto` (bfloat16 on devices that
    have it; on other CPUs for T3 alone, unless it is compiled or quantised)."""
    quantization: str = "none"
    """T3's blocks in `int8` (weights only) or `float8` (products too, on GPUs that have it), or `none`."""
    cpu_threads: int = 0
    """Threads of one network on a CPU; 0 takes half of the cores, since T3 and S3Gen run at the same time and two
    OpenMP teams as large as the machine spin against each other."""
    max_slots: int = 0
    """Utterances decoded together; 0 chooses up to 64 on a GPU and 16 on a CPU, as the memory allows."""
    max_cache_len: int = 1200
    """KV cache positions planned per row; a request that needs more takes them from the common pool."""
    max_queue: int = 256
    """Requests that may wait; one more is answered with 503."""
    max_prefills: int = 4
    """Utterances that may join in one step, so that running ones do not stutter."""
    request_timeout: float = 300.0
    """Seconds from arrival after which a request is given up with 503."""
    max_text_chars: int = 10_000
    segment_chars: int = 300
    """Longer text is split at sentences into segments of about this many characters."""
    preset: str = "upstream"
    """The named sampling parameters (`presets`) of requests which name none."""
    max_seconds: float = 160.0
    """The largest `max_seconds` a request may ask for, per segment."""
    watermark: bool = True
    """Perth's inaudible watermark, as upstream."""
    cuda_graphs: bool = True
    compile: bool = False
    """torch.compile of the decode step."""
    compile_mode: str = "default"
    """As torch.compile takes it. Its own CUDA graphs are left out while ours are on. Compiled code is kept in
    `TORCHINDUCTOR_CACHE_DIR`, which torch reads itself."""
    cfm_steps: int = 0
    """Euler steps of the flow."""
    prompt_seconds: float = 10.0
    """Seconds of a voice's clip that S3Gen hears, as upstream. It computes them for every utterance and every chunk
    of a stream anew, so fewer are cheaper."""
    vocoder_batch: int = 16
    """Segments turned into audio together on a GPU; a CPU takes one after the other."""
    vocoder_delay: float = 0.0
    """Seconds that a finished segment may wait for others to share its vocoder batch."""

    voice_store: str = field(default_factory=lambda: str(cache_folder() / "voices.sqlite"))
    """Where voices are kept: a file, or the URL of a PostgreSQL database."""
    voice_cache_mb: int = 512
    """Memory for voices, about 0.2 MB each; the least recently used ones go first."""
    max_clip_mb: int = 32
    max_clip_seconds: float = 120.0
    """Bounds of a reference clip."""

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must be between {low} and {high}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype is {self.dtype!r}; it must be auto, float32 or bfloat16")
        if self.quantization not in QUANTIZATIONS:
            raise ConfigError(f"quantization is {self.quantization!r}; it must be one of {', '.join(QUANTIZATIONS)}")
        if self.preset not in PRESETS:
            raise ConfigError(f"preset is {self.preset!r}; it must be one of {', '.join(PRESETS)}")
        if self.compile_mode not in COMPILE_MODES:
            raise ConfigError(f"compile_mode is {self.compile_mode!r}; it must be one of {', '.join(COMPILE_MODES)}")

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
    """Every setting that some source gives; the last source wins.

    Raises ConfigError for an unknown name, a value that does not parse, and two names of one source that contradict
    each other.
    """
    environment = os.environ if environment is None else environment
    file = environment.get(FILE_VARIABLE)
    named = ((name, setting, text) for name, text in environment.items() if (setting := _setting_of(name)))
    own = ((f"config.pbtxt: {name}", name, text) for name, text in (parameters or {}).items())
    return {**(_collect(_read(Path(file))) if file else {}), **_collect(named), **_collect(own)}


def _collect(entries: Iterable[tuple[str, str, Any]]) -> dict[str, Setting]:
    """The settings of one source, whose entries are (what to call it, setting, value)."""
    found: dict[str, Setting] = {}
    for source, name, given in entries:
        if name not in _TYPES:
            raise ConfigError(f"unknown setting {source}")
        value = _parse(source, name, given)
        meant = {name: value} if name != _SWITCH else {} if value else _PLAIN
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


_TYPES = {**get_type_hints(Config), _SWITCH: bool}

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("cpu_threads", 0, 1024),
    ("max_slots", 0, 1024),
    ("max_cache_len", 128, 16_384),
    ("max_queue", 1, 100_000),
    ("max_prefills", 1, 64),
    ("request_timeout", 0.1, 86_400),
    ("max_text_chars", 1, 1_000_000),
    ("segment_chars", 40, 1000),
    ("max_seconds", 0.04, 160.0),
    ("cfm_steps", 0, 100),
    ("prompt_seconds", 1.0, 10.0),
    ("vocoder_batch", 1, 128),
    ("vocoder_delay", 0.0, 1.0),
    ("voice_cache_mb", 1, 1_000_000),
    ("max_clip_mb", 1, 1024),
    ("max_clip_seconds", 1.0, 3600.0),
)

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def _setting_of(name: str) -> str | None:
    """The setting that an environment variable means, or None for one that is not ours."""
    if name in _ALIASES:
        return _ALIASES[name]
    if not name.startswith(PREFIX) or name.removeprefix(PREFIX) in _FOREIGN:
        return None
    return name.removeprefix(PREFIX).lower()


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
