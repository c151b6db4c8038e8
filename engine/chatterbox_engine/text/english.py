"""From a request's text to tokens: checked, split into segments, normalised and tokenised as upstream does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol
from unicodedata import category

import sentencex
import tokenizers

from chatterbox_engine.errors import CheckpointError, InvalidRequest

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

_CLOSING = "\"'\u2019\u201d)\\]\u300d\u300f\uff09"  # quotes and brackets that may follow a sentence's full stop
_SENTENCE_END = re.compile(rf"[.!?\u2026\u3002\uff01\uff1f][{_CLOSING}]*$")
_CLAUSE_END = re.compile(rf"[,;:\u2013\u2014\u3001\uff0c\uff1b\uff1a-][{_CLOSING}]*$")
_CLAUSES = re.compile(
    rf"(?<=[,;:\u2013\u2014][{_CLOSING}\s])|(?<=[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"  # CJK: no space after it
)
_WORDS = re.compile(r"(?<=\s)(?=\S)")
_SPACE = re.compile(r"\s+")
_LINE_END = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028]|(\u2029)")  # of str.splitlines; \u2029 ends a paragraph

_WINDOW = 8_000
"""Characters that sentencex gets at once. Beyond 10,240 it works in pieces of its own and loses line ends."""

_ASCII_PUNCTUATION = {
    "\N{HORIZONTAL ELLIPSIS}": ".",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}

_INVISIBLE = {"Cc", "Cf"}  # control and format characters: NUL, zero-width spaces, byte order marks
_INVISIBLE_LETTERS = "\u115f\u1160\u3164\uffa0"  # Hangul's fillers
_SELECTORS = {*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0))}  # of variants of a character

_NO_TEXT = ("[START]", "[STOP]", "[UNK]", "[SPACE]", "[PAD]", "[SEP]", "[CLS]", "[MASK]")
"""Tokens that are written with letters and are none."""

_PARAGRAPH_PAUSE = 0.6
_SENTENCE_PAUSE = 0.3
_CLAUSE_PAUSE = 0.15


@dataclass(frozen=True)
class Segment:
    """A part of a long text that is spoken by one run of T3."""

    text: str
    pause: float
    """Seconds of silence after it."""


class TextPreparation(Protocol):
    """A family's way from text to token ids; `assemble` chooses it."""

    def encode(self, text: str, language: str) -> list[int]:
        """The ids that T3 reads for a segment, without start and stop. Raises InvalidRequest."""

    def speaks(self, ids: Sequence[int]) -> bool:
        """Whether some of these ids are something to speak: T3 makes noise of punctuation and unknown characters."""


class EnglishText:
    """`TextPreparation` of the English model."""

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


def validate_text(data: bytes | str, max_chars: int) -> str:
    """A request's text, decoded, without characters that nobody sees.

    Raises InvalidRequest when it is not UTF-8, blank or too long, or has nothing to speak.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        text.encode()  # JSON can carry lone surrogates, which are no text
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"text is not valid UTF-8: {error.reason} at position {error.start}") from error
    if not text.strip():
        raise InvalidRequest("text is empty")
    if len(text) > max_chars:
        raise InvalidRequest(f"text has {len(text)} characters, at most {max_chars} are allowed")
    text = "".join(char for char in text if not _is_invisible(char))
    if not is_speakable(text):
        raise InvalidRequest("text has nothing to speak: it holds no letter and no digit")
    return text


def is_speakable(text: str) -> bool:
    """Whether a text has letters or numbers of any script; punctuation, symbols, emoji and lone marks are silent."""
    return any(category(char)[0] in "LN" and char not in _INVISIBLE_LETTERS for char in text)


def _is_spoken(token: str) -> bool:
    """Whether a token stands for something to speak: private-use characters do (the demo voice has them)."""
    return is_speakable(token) or any(category(char) == "Co" for char in token)


def _is_invisible(char: str) -> bool:
    hidden = category(char) in _INVISIBLE and not char.isspace()
    return hidden or char in _INVISIBLE_LETTERS or char in _SELECTORS


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


def split(text: str, max_chars: int = 300) -> list[Segment]:
    """Splits a long text at sentences into segments of at most `max_chars` characters; a short one is left as it is.

    As many sentences as fit share a segment, as T3 speaks better with context; a paragraph ends one that is at least
    a third full. A sentence that is too long is split after a clause, else at a space, else anywhere. In a text that is
    split a run of whitespace becomes a space, a line end, or the two line ends of a paragraph; it is left out at the
    ends of segments. All else is in exactly one segment. Takes linear time.
    """
    if len(text.strip()) <= max_chars:
        return [Segment(text, 0.0)]
    parts = list(_pack(_atoms(_SPACE.sub(_squeeze, text), max_chars), max_chars))
    pauses = [*map(_pause, parts[:-1]), 0.0]
    return [Segment(part.strip(), pause) for part, pause in zip(parts, pauses, strict=True)]


def _squeeze(space: re.Match[str]) -> str:
    lines = sum(1 + bool(end[1]) for end in _LINE_END.finditer(space[0]))
    return "\n" * min(lines, 2) or " "


def _atoms(text: str, max_chars: int) -> Iterator[str]:
    """Pieces of at most `max_chars` without their outer whitespace, whose concatenation is `text`."""
    for sentence in _sentences(text):
        yield from _break(sentence, max_chars, (_CLAUSES, _WORDS))


def _sentences(text: str) -> Iterator[str]:
    """Sentences whose concatenation is `text`, whatever lengths the library's have."""
    start = 0
    while start < len(text):
        window = text[start : start + _WINDOW]
        ends = [end for end in accumulate(map(len, _segment(window))) if end < len(window)]
        if start + len(window) == len(text):
            ends.append(len(window))
        elif not ends:
            ends.append(window.rfind(" ") + 1 or len(window))
        # a last sentence that the window cuts off begins the next one
        for first, end in pairwise([0, *ends]):
            yield window[first:end]
        start += ends[-1]


def _segment(text: str) -> list[str]:
    sentences: list[str] = sentencex.segment("en", "".join(map(_ascii, text)))
    return sentences


def _ascii(char: str) -> str:
    """An ASCII character of the same kind. sentencex 1.0 panics where multi-byte characters follow an initial."""
    if char.isascii():
        return char
    if char.isspace():
        return " "
    if char.isupper():
        return "X"
    return _ASCII_PUNCTUATION.get(char, "x")


def _break(piece: str, max_chars: int, ways: tuple[re.Pattern[str], ...]) -> Iterator[str]:
    if len(piece.strip()) <= max_chars:
        yield piece
    elif ways:
        for part in ways[0].split(piece):
            yield from _break(part, max_chars, ways[1:])
    else:
        yield from (piece[start : start + max_chars] for start in range(0, len(piece), max_chars))


def _pack(atoms: Iterator[str], max_chars: int) -> Iterator[str]:
    """Joins neighbours while they fit. What is blank goes with its left neighbour."""
    part = ""
    for atom in atoms:
        full = len((part + atom).strip()) > max_chars
        paragraph = _ends_paragraph(part) and len(part.strip()) >= max_chars // 3
        if atom.strip() and (full or paragraph):
            yield part
            part = ""
        part += atom
    if part.strip():
        yield part


def _ends_paragraph(part: str) -> bool:
    return part[len(part.rstrip()) :].count("\n") >= 2


def _pause(part: str) -> float:
    spoken = part.rstrip()
    if _ends_paragraph(part):
        return _PARAGRAPH_PAUSE
    if _SENTENCE_END.search(spoken):
        return _SENTENCE_PAUSE
    return _CLAUSE_PAUSE if _CLAUSE_END.search(spoken) else 0.0
