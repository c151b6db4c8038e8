"""The last stage, from a segment's text to tokens: normalised and tokenised as upstream does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol
from unicodedata import category

import tokenizers

from chatterbox_engine.errors import CheckpointError, InvalidRequest
from chatterbox_engine.text.passages import is_speakable

REPLACED = (  # applied one after another: the order matters
    ("...", ", "),
    ("\N{HORIZONTAL ELLIPSIS}", ", "),
    (":", ","),
    (" - ", ", "),
    (";", ", "),
    ("\N{EM DASH}", "-"),
    ("\N{EN DASH}", "-"),
    (" ,", ","),
    ("\N{LEFT DOUBLE QUOTATION MARK}", '"'),
    ("\N{RIGHT DOUBLE QUOTATION MARK}", '"'),
    ("\N{LEFT SINGLE QUOTATION MARK}", "'"),
    ("\N{RIGHT SINGLE QUOTATION MARK}", "'"),
)
_ENDINGS = (".", "!", "?", "-", ",")

_NO_TEXT = ("[START]", "[STOP]", "[UNK]", "[SPACE]", "[PAD]", "[SEP]", "[CLS]", "[MASK]")
"""Tokens that are written with letters and are none."""


class TextPreparation(Protocol):
    """A family's way from text to token ids; `assemble` chooses it."""

    sounds: Collection[str]
    """Names of the tags, like `[laugh]`, that are tokens of their own."""

    def encode(self, text: str, language: str) -> list[int]:
        """The ids that T3 reads for a segment, without start and stop. Raises InvalidRequest."""

    def speaks(self, ids: Sequence[int]) -> bool:
        """Whether some of these ids are something to speak: T3 makes noise of punctuation and unknown characters."""


class EnglishText:
    """`TextPreparation` of the English model."""

    sounds: Collection[str] = ()

    def __init__(self, path: Path) -> None:
        """Reads a `tokenizer.json`. Raises CheckpointError."""
        self._tokenizer = Tokenizer(path)

    def encode(self, text: str, language: str) -> list[int]:  # noqa: ARG002
        """As upstream's `ChatterboxTTS.generate` prepares a text; there is one language."""
        return self._tokenizer.encode(normalise(text))

    def speaks(self, ids: Sequence[int]) -> bool:
        """See `TextPreparation.speaks`."""
        return self._tokenizer.speaks(ids)


_REFUSED = "[REFUSED]"
"""The token of characters that a checkpoint cannot speak; most checkpoints have `[UNK]` instead and speak on."""


class Tokenizer:
    """Text to the token ids that T3 reads, without its start and stop tokens."""

    def __init__(self, path: Path) -> None:
        """Reads a `tokenizer.json`. Raises CheckpointError when it is none, or not one of Chatterbox."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from error
        spoken = {token: number for token, number in self._tokenizer.get_vocab().items() if _is_spoken(token)}
        self._spoken = set(spoken.values()) - {spoken.get(token) for token in _NO_TEXT}
        missing = [name for name in ("[START]", "[STOP]", "[SPACE]") if self._tokenizer.token_to_id(name) is None]
        if missing:
            raise CheckpointError(f"{path}: lacks {', '.join(missing)}")
        self._refused = self._tokenizer.token_to_id(_REFUSED)

    def encode(self, text: str) -> list[int]:
        """Token ids of a normalised text, as upstream's `EnTokenizer.encode`. Raises InvalidRequest for characters that
        the checkpoint cannot speak."""
        text = text.replace(" ", "[SPACE]")
        encoding = self._tokenizer.encode(text)
        ids: list[int] = encoding.ids
        if self._refused in ids:
            places = [place for token, place in zip(ids, encoding.offsets, strict=True) if token == self._refused]
            strange = dict.fromkeys(text[begin:end] for begin, end in places)
            raise InvalidRequest(f"this checkpoint cannot speak {', '.join(map(repr, strange))}: write it in words")
        return ids

    def speaks(self, ids: Sequence[int]) -> bool:
        """Whether some of these tokens have a letter or a digit."""
        return not self._spoken.isdisjoint(ids)


def _is_spoken(token: str) -> bool:
    """Whether a token stands for something to speak: private-use characters do (the demo voice has them)."""
    return is_speakable(token) or any(category(char) == "Co" for char in token)


def normalise(text: str, replaced: Sequence[tuple[str, str]] = REPLACED, endings: tuple[str, ...] = _ENDINGS) -> str:
    """Cleans punctuation as upstream's `punc_norm` does (chatterbox-tts 0.1.7, `tts.py`)."""
    if not text:
        return "You need to add some text for me to talk."
    if text[0].islower():
        text = text[0].upper() + text[1:]
    text = " ".join(text.split())
    for old, new in replaced:
        text = text.replace(old, new)
    text = text.rstrip(" ")
    return text if text.endswith(endings) else text + "."
