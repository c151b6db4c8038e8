"""Where sentences end in each language, and the silence that follows. The client reads this file too, by a link.

Imports no other module of the project.
"""

from __future__ import annotations

import re
from itertools import accumulate, pairwise

import sentencex

STOPS = "\u3002\uff01\uff1f\uff61\u0964\u0965\u06d4\u061f"  # of Chinese and Japanese, Hindi, Urdu, Arabic
COMMAS = "\u3001\uff0c\uff1b\uff1a\u060c\u061b"
CLOSING = "\"'\u2019\u201d)\\]\u300d\u300f\uff09\u00bb"  # quotes and brackets that may follow a sentence's full stop
_SENTENCE_END = re.compile(rf"[.!?\u2026{STOPS}][{CLOSING}]*$")
_CLAUSE_END = re.compile(rf"[,;:\u2013\u2014{COMMAS}-][{CLOSING}]*$")
WHOLE = r"(?!(?<=\d.)\d)(?![^\[\]\n]{0,40}\])"  # neither in a number nor in a tag
CLAUSES = re.compile(  # no space follows those of Chinese and Japanese
    rf"(?:(?<=[,;:\u2013\u2014\u060c\u061b][{CLOSING}\s])|(?<=[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f\uff61]))"
    + WHOLE
)
_STOPPED = re.compile(rf"[{STOPS}]+[{CLOSING}]*\s*")

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


def segment(text: str, language: str) -> list[str]:
    """Sentences whose lengths add up to that of `text`: where the library ends them, and after stops that it lacks or
    wants a space after."""
    ends = set(accumulate(map(len, sentencex.segment(language, "".join(map(_ascii, text))))))
    ends.update(stop.end() for stop in _STOPPED.finditer(text))
    return [text[start:end] for start, end in pairwise([0, *sorted(ends)])]


def pause_after(text: str) -> float:
    """Seconds of silence that the punctuation and the line ends at the end of a text ask for."""
    spoken = text.rstrip()
    if ends_paragraph(text):
        return PARAGRAPH_PAUSE
    if _SENTENCE_END.search(spoken):
        return SENTENCE_PAUSE
    return CLAUSE_PAUSE if _CLAUSE_END.search(spoken) else 0.0


def ends_paragraph(part: str) -> bool:
    """Whether an empty line follows the text."""
    return part[len(part.rstrip()) :].count("\n") >= 2


def _ascii(char: str) -> str:
    """An ASCII character of the same kind. sentencex 1.0 panics where multi-byte characters follow an initial."""
    if char.isascii():
        return char
    if char.isspace():
        return " "
    if char.isupper():
        return "X"
    return _ASCII_PUNCTUATION.get(char, "x")
