"""The sizes of a checkpoint's networks. The defaults are the official English checkpoint's.

A folder without `config.json` has its family's official sizes; `tiny` and other small checkpoints state theirs there.
Sources: chatterbox-tts 0.1.7 `models/t3/llama_configs.py`, `models/t3/modules/t3_config.py`, `models/s3gen/s3gen.py`,
`tts_turbo.py`.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from chatterbox_engine.errors import CheckpointError
from chatterbox_engine.types import Head


@dataclass(frozen=True)
class T3Dims(abc.ABC):
    """Sizes of T3 (text to speech tokens) that its two backbones have in common."""

    hidden: int = 1024
    layers: int = 30
    heads: int = 16
    head_dim: int = 64
    intermediate: int = 4096
    text_vocab: int = 704
    speech_vocab: int = 8194
    max_text_tokens: int = 2048
    max_speech_tokens: int = 4096
    start_speech: int = 6561
    stop_speech: int = 6562
    speaker_embed: int = 256
    prompt_tokens: int = 150

    bos: ClassVar[int]
    """BOS tokens at the end of the prompt."""

    @property
    @abc.abstractmethod
    def prefix(self) -> int:
        """Positions of the conditioning prefix; some voices have fewer."""

    @abc.abstractmethod
    def prefix_of(self, prompt_tokens: int) -> int:
        """Positions of the prefix of a voice whose prompt has that many tokens."""

    @property
    @abc.abstractmethod
    def longest(self) -> int:
        """Positions of the longest request."""

    def checked_heads(self, heads: Any) -> tuple[Head, ...]:
        """A list of pairs [layer, head] as heads. Raises ValueError where it is none, or names one that there is
        not."""
        checked: list[Head] = []
        for pair in heads if isinstance(heads, list | tuple) else [heads]:
            if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(type(part) is int for part in pair)):
                raise ValueError(f"{pair!r} is not a pair of layer and head")
            layer, head = pair
            if not (0 <= layer < self.layers and 0 <= head < self.heads):
                raise ValueError(f"there is no head {head} of layer {layer}: T3 has {self.layers} of {self.heads}")
            checked.append((layer, head))
        return tuple(dict.fromkeys(checked))

    @property
    @abc.abstractmethod
    def text_frame(self) -> tuple[list[int], list[int]]:
        """Token ids that the sequence has before and after those of a text."""

    def frame(self, text: list[int]) -> list[int]:
        """A text's token ids with the start and stop tokens that the sequence has."""
        before, after = self.text_frame
        return [*before, *text, *after]


@dataclass(frozen=True)
class LlamaDims(T3Dims):
    """A Llama decoder with learned position embeddings beside RoPE."""

    rms_norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_factor: float = 8.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_positions: int = 8192
    start_text: int = 255
    stop_text: int = 0
    perceiver_queries: int = 32
    perceiver_heads: int = 4

    bos: ClassVar[int] = 2

    @property
    def text_positions(self) -> int:
        """Rows of the text position table (upstream adds two for start and stop)."""
        return self.max_text_tokens + 2

    @property
    def speech_positions(self) -> int:
        """Rows of the speech position table."""
        return self.max_speech_tokens + 4

    @property
    def speech_embeddings(self) -> int:
        """Rows of the table of speech tokens."""
        return self.speech_vocab

    @property
    def prefix(self) -> int:
        """Speaker, perceiver output, emotion."""
        return 1 + self.perceiver_queries + 1

    def prefix_of(self, prompt_tokens: int) -> int:  # noqa: ARG002
        return self.prefix

    @property
    def longest(self) -> int:
        return self.prefix + self.text_positions + self.speech_positions

    @property
    def text_frame(self) -> tuple[list[int], list[int]]:
        return [self.start_text], [self.stop_text]


@dataclass(frozen=True)
class FlashDims(LlamaDims):
    """The same decoder, which predicts a block of tokens at a time: one more input stands for a token that is not known
    yet (chatterbox-flash 0.1.0, `model.py`)."""

    block: int = 16

    bos: ClassVar[int] = 1

    @property
    def mask(self) -> int:
        """The token that is not known yet: an input, never an output."""
        return self.speech_vocab

    @property
    def speech_embeddings(self) -> int:
        return self.speech_vocab + 1


@dataclass(frozen=True)
class GPT2Dims(T3Dims):
    """A GPT-2 decoder, whose one table of positions covers the whole sequence. The defaults are Turbo's."""

    layers: int = 24
    text_vocab: int = 50_276
    speech_vocab: int = 6563
    prompt_tokens: int = 375
    positions: int = 8196
    layer_norm_eps: float = 1e-5

    bos: ClassVar[int] = 1

    @property
    def prefix(self) -> int:
        """Speaker, prompt tokens."""
        return self.prefix_of(self.prompt_tokens)

    def prefix_of(self, prompt_tokens: int) -> int:
        return 1 + prompt_tokens

    @property
    def longest(self) -> int:
        return self.prefix + self.max_text_tokens + self.bos + self.max_speech_tokens

    @property
    def text_frame(self) -> tuple[list[int], list[int]]:
        return [], []


@dataclass(frozen=True)
class S3GenDims:
    """Speech tokens to waveform: conformer encoder, flow-matching UNet, HiFT vocoder."""

    vocab: int = 6561
    mel: int = 80
    speaker_embed: int = 192
    encoder: int = 512
    encoder_heads: int = 8
    encoder_units: int = 2048
    encoder_blocks: int = 6
    encoder_up_blocks: int = 4
    decoder: int = 256
    decoder_heads: int = 8
    decoder_head_dim: int = 64
    decoder_blocks: int = 4
    decoder_mid_blocks: int = 12
    meanflow: bool = False
    hift: int = 512
    f0: int = 512


@dataclass(frozen=True)
class ReferenceDims:
    """Reference clip encoders; only the S3 tokenizer has another size in small checkpoints."""

    tokenizer_state: int = 1280
    tokenizer_heads: int = 20
    tokenizer_layers: int = 6


@dataclass(frozen=True)
class Dims:
    """All sizes of one checkpoint."""

    t3: T3Dims = field(default_factory=LlamaDims)
    s3gen: S3GenDims = field(default_factory=S3GenDims)
    reference: ReferenceDims = field(default_factory=ReferenceDims)
    alignment_heads: tuple[Head, ...] = ()
    """Heads of T3 that attend to the text that is spoken; none where they are not known."""
    alignment_peak: float = 0.0
    """Their usual highest attention on one place of the text; 0 where it is not known."""

    def load(self, folder: Path) -> Dims:
        """These sizes, or those that `config.json` of a checkpoint folder states instead. The heads of another T3 are
        unknown unless it states them too.

        Raises CheckpointError when the file is not JSON or names a size or a head that does not exist.
        """
        path = folder / "config.json"
        raw = _read(path)
        _refuse_unknown(path, raw, [part.name for part in dataclasses.fields(self)])
        heads = raw.pop(_HEADS, [] if "t3" in raw else self.alignment_heads)
        peak = raw.pop("alignment_peak", 0.0)
        sized = {name: _edit(path, getattr(self, name), sizes) for name, sizes in raw.items()}
        loaded = dataclasses.replace(self, **sized, alignment_heads=())
        try:
            checked = loaded.t3.checked_heads(heads)
            return dataclasses.replace(loaded, alignment_heads=checked, alignment_peak=float(peak))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: {_HEADS}: {error}") from error

    def with_s3gen(self, folder: Path) -> Dims:
        """These sizes with those of the S3Gen in another folder, whose encoders of clips are in the same file: the
        official ones, or those that its `config.json` states."""
        path = folder / "config.json"
        parts = {name: sizes for name, sizes in _read(path).items() if name in ("s3gen", "reference")}
        fresh = Dims(self.t3, alignment_heads=self.alignment_heads, alignment_peak=self.alignment_peak)
        return dataclasses.replace(
            fresh, **{name: _edit(path, getattr(fresh, name), sizes) for name, sizes in parts.items()}
        )

    def save(self, folder: Path) -> None:
        """Writes `config.json` into a checkpoint folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")


_HEADS = "alignment_heads"


def _read(path: Path) -> dict[str, Any]:
    """What a `config.json` states; nothing where there is none."""
    if not path.exists():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    return dict(raw)


def _edit(path: Path, part: Any, sizes: dict[str, Any]) -> Any:
    _refuse_unknown(path, sizes, [item.name for item in dataclasses.fields(part)])
    return dataclasses.replace(part, **sizes)


def _refuse_unknown(path: Path, given: Any, known: Any) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise CheckpointError(f"{path}: unknown entries: {', '.join(unknown)}")
