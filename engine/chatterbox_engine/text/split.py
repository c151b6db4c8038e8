"""Passages to segments: at sentences as each language ends them, then at clauses, then at spaces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import sentencex

from chatterbox_engine.text.passages import Text

_STOPS = "\u3002\uff01\uff1f\uff61\u0964\u0965\u06d4\u061f"  # of Chinese and Japanese, Hindi, Urdu, Arabic
_COMMAS = "\u3001\uff0c\uff1b\uff1a\u060c\u061b"
_CLOSING = "\"'\u2019\u201d)\\]\u300d\u300f\uff09\u00bb"  # quotes and brackets that may follow a sentence's full stop
_SENTENCE_END = re.compile(rf"[.!?\u2026{_STOPS}][{_CLOSING}]*$")
_CLAUSE_END = re.compile(rf"[,;:\u2013\u2014{_COMMAS}-][{_CLOSING}]*$")
_CLAUSES = re.compile(  # no space follows those of Chinese and Japanese
    rf"(?<=[,;:\u2013\u2014\u060c\u061b][{_CLOSING}\s])|(?<=[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f\uff61])"
)
_STOPPED = re.compile(rf"[{_STOPS}]+[{_CLOSING}]*\s*")
_WORDS = re.compile(r"(?<=\s)(?=\S)")
_SPACE = re.compile(r"\s+")
_LINE_END = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028]|(\u2029)")  # of str.splitlines; \u2029 ends a paragraph

_WINDOW = 8_000
"""Characters that sentencex gets at once. Beyond 10,240 it works in pieces of its own and loses line ends."""

_ASCII_PUNCTUATION = {
    "\N{HORIZONTAL ELLIPSIS}": ".",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    **dict.fromkeys("\u201e\u201f\u00ab\u00bb", '"'),  # one without its partner would hide all ends up to the next
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}

PARAGRAPH_PAUSE = 0.6
SENTENCE_PAUSE = 0.3
CLAUSE_PAUSE = 0.15


@dataclass(frozen=True)
class Part:
    """A part of a text that is spoken by one run of T3."""

    text: Text
    pause: float
    """Seconds of silence after it; 0 after the last."""


def split(text: Text, language: str, max_chars: int = 300) -> list[Part]:
    """Splits a long text at sentences into parts of at most `max_chars` characters; a short one is left as it is.

    As many sentences as fit share a part, as T3 speaks better with context; a paragraph ends one that is at least a
    third full. A sentence that is too long is split after a clause, else at a space, else anywhere. In a text that is
    split a run of whitespace becomes a space, a line end, or the two line ends of a paragraph; it is left out at the
    ends of parts. All else is in exactly one part. Takes linear time.
    """
    if len(text.string.strip()) <= max_chars:
        return [Part(text, 0.0)]
    text = text.sub(_SPACE, _squeeze)
    strings = list(_pack(_atoms(text.string, language, max_chars), max_chars))
    parts, start = [], 0
    for number, string in enumerate(strings, 1):
        pause = pause_after(string) if number < len(strings) else 0.0
        parts.append(Part(text[start : start + len(string)].strip(), pause))
        start += len(string)
    return parts


def pause_after(text: str) -> float:
    """Seconds of silence that the punctuation and the line ends at the end of a text ask for."""
    spoken = text.rstrip()
    if _ends_paragraph(text):
        return PARAGRAPH_PAUSE
    if _SENTENCE_END.search(spoken):
        return SENTENCE_PAUSE
    return CLAUSE_PAUSE if _CLAUSE_END.search(spoken) else 0.0


def _squeeze(space: re.Match[str]) -> str:
    lines = sum(1 + bool(end[1]) for end in _LINE_END.finditer(space[0]))
    return "\n" * min(lines, 2) or " "


def _atoms(text: str, language: str, max_chars: int) -> Iterator[str]:
    """Pieces of at most `max_chars` without their outer whitespace, whose concatenation is `text`."""
    for sentence in _sentences(text, language):
        yield from _break(sentence, max_chars, (_CLAUSES, _WORDS))


def _sentences(text: str, language: str) -> Iterator[str]:
    """Sentences whose concatenation is `text`, whatever lengths the library's have."""
    start = 0
    while start < len(text):
        window = text[start : start + _WINDOW]
        ends = [end for end in accumulate(map(len, _segment(window, language))) if end < len(window)]
        if start + len(window) == len(text):
            ends.append(len(window))
        elif not ends:
            ends.append(window.rfind(" ") + 1 or len(window))
        # a last sentence that the window cuts off begins the next one
        for first, end in pairwise([0, *ends]):
            yield window[first:end]
        start += ends[-1]


def _segment(text: str, language: str) -> list[str]:
    """Sentences whose lengths add up to that of `text`: where the library ends them, and after stops that it lacks or
    wants a space after."""
    ends = set(accumulate(map(len, sentencex.segment(language, "".join(map(_ascii, text))))))
    ends.update(stop.end() for stop in _STOPPED.finditer(text))
    return [text[start:end] for start, end in pairwise([0, *sorted(ends)])]


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
