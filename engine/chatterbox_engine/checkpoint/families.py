"""How the members of the Chatterbox family differ, as data. Imports no torch: the contract uses it too.

`detect` tells which family a checkpoint is of. Where members differ in computation, an entry here selects one of two
variants, and the module that computes it implements both; no other code depends on the family.

Sources: chatterbox-tts 0.1.7 `tts.py`, `mtl_tts.py`, `tts_turbo.py`, `models/t3/t3.py`; Multilingual V3, its tail crop
and Nano: the repository's main branch (commit 5de7a54), where `mtl_tts.py` has no alignment analyser any more; Flash:
chatterbox-flash 0.1.0 `tts.py` (which loads ResembleAI/chatterbox-flash), `model.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from chatterbox_engine.checkpoint.dims import Dims, FlashDims, GPT2Dims, LlamaDims, S3GenDims
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.types import SamplingParams

Processor = Literal["penalty", "temperature", "min_p", "top"]
"""A step from logits to a distribution; `top` is top-k, then top-p."""

Text = Literal["english", "flash", "multilingual", "gpt2"]
"""How a text is normalised and tokenised."""

# fmt: off
_LANGUAGES = (
    "ar", "da", "de", "el", "en", "es", "fi", "fr", "he", "hi", "it", "ja",
    "ko", "ms", "nl", "no", "pl", "pt", "ru", "sv", "sw", "tr", "zh",
)
# fmt: on
CANGJIE = "Cangjie5_TC.json"
"""How Chinese characters are spelled."""
_LLAMA_HEADS = ((12, 15), (13, 11), (9, 2))
"""Upstream's `LLAMA_ALIGNED_HEADS` (0.1.7, `alignment_stream_analyzer.py`)."""
_SILENCE = 4299  # upstream `S3GEN_SIL`


@dataclass(frozen=True)
class Files:
    """File names in a checkpoint's folder."""

    t3: str
    s3gen: str
    """Empty: it comes from elsewhere."""
    voice_encoder: str
    text: tuple[str, ...]
    """Files of the tokenizer; the first one is the tokenizer itself."""
    optional_text: tuple[str, ...] = ()
    conditionals: str = "conds.pt"
    """The built-in voice; a checkpoint may have none."""
    config: str = "config.json"
    """This project's own: sizes that differ from the official ones."""

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(name for name in (self.t3, self.s3gen, self.voice_encoder) if name)

    @property
    def required(self) -> tuple[str, ...]:
        return (*self.weights, *self.text)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.required, *self.optional_text, self.conditionals, self.config)


@dataclass(frozen=True)
class Reference:
    """How a clip is prepared for the encoders."""

    min_seconds: float = 0.5
    """The shortest clip."""
    t3_seconds: int = 6
    """Seconds of the clip that T3's prompt is made of."""
    loudness: float | None = None
    """LUFS that a clip is normalised to; None leaves it as it is."""


@dataclass(frozen=True)
class Budget:
    """How long an utterance may become, by the length of its text."""

    tokens: int
    """Speech tokens for each text token, start and stop included."""
    least: int
    """Speech tokens that every utterance may have."""

    def of(self, text_tokens: int) -> int:
        """Speech tokens of an utterance at most."""
        return max(self.tokens * text_tokens, self.least)


@dataclass(frozen=True)
class Family:
    """One member of the family."""

    name: str
    title: str
    files: Files
    dims: Dims
    """The official sizes; the kind of `dims.t3` is T3's backbone."""
    inputs: tuple[str, ...]
    """The sampling inputs that it supports; any other one is refused."""
    sampling: SamplingParams
    """Upstream's defaults."""
    processors: tuple[Processor, ...]
    """From logits to the distribution that is drawn from, in upstream's order."""
    text: Text
    languages: tuple[str, ...] = ("en",)
    language: str = "en"
    """That of requests which name none."""
    reference: Reference = field(default_factory=Reference)
    bos_once: bool = False
    """The repetition penalty counts BOS at the first token only."""
    appended: tuple[int, ...] = ()
    """Speech tokens that are appended to T3's before vocoding."""
    cropped: int = 0
    """Speech tokens at the end that are vocoded and then cropped: they are noise."""
    budget: Budget | None = None
    """None: the request alone bounds an utterance."""
    voiced: bool = True
    """Its release has a built-in voice."""

    @property
    def guided(self) -> bool:
        """Classifier-free guidance: a request may have a second, unconditional row."""
        return "cfg_weight" in self.inputs

    @property
    def in_blocks(self) -> bool:
        """T3 predicts a block of tokens at a time."""
        return isinstance(self.dims.t3, FlashDims)

    @property
    def rows(self) -> int:
        """T3 rows of an utterance at most."""
        return 2 if self.guided else 1


ENGLISH = Family(
    name="english",
    title="Chatterbox",
    files=Files("t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors", ("tokenizer.json",)),
    dims=Dims(alignment_heads=_LLAMA_HEADS),
    inputs=("exaggeration", "cfg_weight", "temperature", "top_p", "min_p", "repetition_penalty"),
    sampling=SamplingParams(),
    processors=("penalty", "temperature", "min_p", "top"),
    text="english",
)

MULTILINGUAL_V2 = replace(
    ENGLISH,
    name="multilingual-v2",
    title="Chatterbox Multilingual V2",
    files=Files(
        "t3_mtl23ls_v2.safetensors",
        "s3gen.pt",
        "ve.pt",
        ("grapheme_mtl_merged_expanded_v1.json",),
        (CANGJIE,),
    ),
    dims=Dims(t3=LlamaDims(text_vocab=2454), alignment_heads=_LLAMA_HEADS),
    text="multilingual",
    languages=_LANGUAGES,
    cropped=1,
)

MULTILINGUAL_V3 = replace(
    MULTILINGUAL_V2,
    name="multilingual-v3",
    title="Chatterbox Multilingual V3",
    files=replace(MULTILINGUAL_V2.files, t3="t3_mtl23ls_v3.safetensors"),
)

TURBO = Family(
    name="turbo",
    title="Chatterbox Turbo",
    files=Files(
        "t3_turbo_v1.safetensors",
        "s3gen_meanflow.safetensors",
        "ve.safetensors",
        ("vocab.json", "merges.txt", "tokenizer_config.json"),
        ("added_tokens.json", "special_tokens_map.json", "tokenizer.json"),
    ),
    dims=Dims(t3=GPT2Dims(), s3gen=S3GenDims(meanflow=True)),
    inputs=("temperature", "top_p", "top_k", "repetition_penalty"),
    sampling=SamplingParams(exaggeration=0.0, cfg_weight=0.0, top_p=0.95, min_p=0.0, top_k=1000),
    processors=("temperature", "top", "penalty"),
    text="gpt2",
    reference=Reference(min_seconds=5.0, t3_seconds=15, loudness=-27.0),
    bos_once=True,
    appended=(_SILENCE,) * 3,
)

NANO = replace(
    TURBO,
    name="nano",
    title="Chatterbox Nano",
    files=replace(TURBO.files, t3="t3_nano_v1.safetensors"),
    dims=replace(TURBO.dims, t3=GPT2Dims(hidden=768, layers=12, heads=12, intermediate=3072)),
)

FLASH = Family(
    name="flash",
    title="Chatterbox Flash",
    files=Files("t3_flash.safetensors", "s3gen.safetensors", "ve.safetensors", ("tokenizer.json",)),
    dims=Dims(t3=FlashDims(), s3gen=S3GenDims(meanflow=True)),
    inputs=(
        "exaggeration",
        "cfg_weight",
        "temperature",
        "num_steps",
        "time_shift_tau",
        "omnivoice_schedule_t_shift",
        "position_temperature",
    ),
    sampling=SamplingParams(cfg_weight=1.0, temperature=0.6, min_p=0.0, repetition_penalty=1.0),
    processors=(),
    text="flash",
    budget=Budget(tokens=6, least=300),
    voiced=False,
)

FAMILIES = (ENGLISH, MULTILINGUAL_V3, MULTILINGUAL_V2, TURBO, NANO, FLASH)
"""In the order in which a folder that holds several is read: the official repository has the first three."""


def candidates(name: str) -> tuple[Family, ...]:
    """The families that a setting allows: all of them, or the named one. Raises ConfigError."""
    found = tuple(family for family in FAMILIES if name in ("auto", family.name))
    if not found:
        raise ConfigError(f"family is {name!r}; it must be auto or one of {', '.join(f.name for f in FAMILIES)}")
    return found
