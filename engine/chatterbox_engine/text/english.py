"""The last stage, from a segment's text to tokens: normalised and tokenised as upstream does."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from unicodedata import category

import tokenizers

from chatterbox_engine.errors import CheckpointError, InvalidRequest
from chatterbox_engine.text.flash import flash
from chatterbox_engine.text.passages import CharSpan, Text, is_speakable

Replaced = Sequence[tuple[re.Pattern[str], str]]
"""What is replaced, one after another: the order matters."""

_PAIRS = (
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
REPLACED: Replaced = tuple((re.compile(re.escape(old)), new) for old, new in _PAIRS)
_SPACES = re.compile(r"\s+")
_SPACE = re.compile(" ")
_ENDINGS = (".", "!", "?", "-", ",")

_NO_TEXT = ("[START]", "[STOP]", "[UNK]", "[SPACE]", "[PAD]", "[SEP]", "[CLS]", "[MASK]")
"""Tokens that are written with letters and are none."""


@dataclass(frozen=True)
class Tokens:
    """A segment as T3 reads it, without start and stop."""

    ids: list[int]
    spans: list[CharSpan]
    """[ids] Source characters [start, end) that each stands for; an empty span: none, as an added full stop."""


class TextPreparation(Protocol):
    """A family's way from text to tokens; `assemble` chooses it."""

    sounds: Collection[str]
    """Names of the tags, like `[laugh]`, that are tokens of their own."""

    def encode(self, text: Text, language: str) -> Tokens:
        """The tokens that T3 reads for a segment. Raises InvalidRequest."""

    def speaks(self, ids: Sequence[int]) -> bool:
        """Whether some of these ids are something to speak: T3 makes noise of punctuation and unknown characters."""


class EnglishText:
    """`TextPreparation` of the English model."""

    sounds: Collection[str] = ()

    def __init__(self, path: Path) -> None:
        """Reads a `tokenizer.json`. Raises CheckpointError."""
        self._tokenizer = Tokenizer(path)

    def encode(self, text: Text, language: str) -> Tokens:  # noqa: ARG002
        """As upstream's `ChatterboxTTS.generate` prepares a text; there is one language."""
        return self._tokenizer.encode(normalise(text))

    def speaks(self, ids: Sequence[int]) -> bool:
        """See `TextPreparation.speaks`."""
        return self._tokenizer.speaks(ids)


class FlashText(EnglishText):
    """`TextPreparation` of Flash: the same tokenizer after a normaliser of its own."""

    def encode(self, text: Text, language: str) -> Tokens:  # noqa: ARG002
        """As upstream's `ChatterboxFlashTTS.generate` prepares a text."""
        return self._tokenizer.encode(flash(text))


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

    def encode(self, text: Text) -> Tokens:
        """The tokens of a normalised text, as upstream's `EnTokenizer.encode`.

        Raises InvalidRequest for characters that the checkpoint cannot speak.
        """
        text = text.sub(_SPACE, "[SPACE]")
        encoding = self._tokenizer.encode(text.string)
        ids: list[int] = encoding.ids
        if self._refused in ids:
            places = [place for token, place in zip(ids, encoding.offsets, strict=True) if token == self._refused]
            strange = dict.fromkeys(text.string[begin:end] for begin, end in places)
            raise InvalidRequest(f"this checkpoint cannot speak {', '.join(map(repr, strange))}: write it in words")
        return Tokens(ids, spans(text, encoding.offsets))

    def speaks(self, ids: Sequence[int]) -> bool:
        """Whether some of these tokens have a letter or a digit."""
        return not self._spoken.isdisjoint(ids)


def _is_spoken(token: str) -> bool:
    """Whether a token stands for something to speak: private-use characters do (the demo voice has them)."""
    return is_speakable(token) or any(category(char) == "Co" for char in token)


def spans(text: Text, offsets: Sequence[CharSpan]) -> list[CharSpan]:
    """The source characters of each token; offsets: its characters [start, end) in the text that was tokenised."""
    return [text.source(start, end) if start < end else (text.place(start),) * 2 for start, end in offsets]


def normalise(text: Text, replaced: Replaced = REPLACED, endings: tuple[str, ...] = _ENDINGS) -> Text:
    """Cleans punctuation as upstream's `punc_norm` does (chatterbox-tts 0.1.7, `tts.py`)."""
    if not text.string:
        return text.edited([(0, 0, "You need to add some text for me to talk.")])
    if text.string[0].islower():
        text = text.edited([(0, 1, text.string[0].upper())])
    text = text.strip().sub(_SPACES, " ")
    for old, new in replaced:
        text = text.sub(old, new)
    text = text[: len(text.string.rstrip(" "))]
    return text if text.string.endswith(endings) else text.edited([(len(text), len(text), ".")])
