"""The first stage: what a text may hold, and characters that stand for others."""

from __future__ import annotations

import re
from functools import lru_cache
from unicodedata import category, decomposition, normalize

from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.text.passages import INVISIBLE_LETTERS, Text, is_speakable

_INVISIBLE = {"Cc", "Cf"}  # control and format characters: NUL, zero-width spaces, byte order marks
_SELECTORS = {*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0))}  # of variants of a character

_OWN_PUNCTUATION = {"ja", "zh"}
"""Languages whose full-width punctuation is no variant of another."""

_CHARACTERS = {
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u275d\u275e", '"'),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\u2032\u275b\u275c", "'"),
    **dict.fromkeys("\u2010\u2011", "-"),
    **dict.fromkeys("\v\f\x1c\x1d\x1e\x85\u2028\r", "\n"),
    "\u2029": "\n\n",
}
"""Quotes, hyphens and line ends that have many forms. Other dashes are left: an en dash means a range."""

_SPACE = re.compile(r"[^\S\n]")
_VARIANTS = ("<wide>", "<narrow>", "<font>")
_LIGATURES = range(0xFB00, 0xFB07)
_UNUSUAL = re.compile(r"[\uff65-\uff9f]+|\r\n|[^\x20-\x7e\n]")  # half-width kana with their marks, or one character


def validate_text(data: bytes | str, max_chars: int) -> str:
    """A request's text, decoded.

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
    if not is_speakable(text):
        raise InvalidRequest("text has nothing to speak: it holds no letter and no digit")
    return text


def visible(text: Text) -> Text:
    """Without characters that nobody sees."""
    string = text.string
    if string.isascii() and string.isprintable():
        return text
    return text.edited((at, at + 1, "") for at, char in enumerate(string) if _is_invisible(char))


def clean(text: Text, language: str) -> Text:
    """Without invisible and private characters; full-width and styled ones, spaces, quotes and line ends as usual."""
    text = visible(text)

    def usual(match: re.Match[str]) -> str:
        found = match[0]
        if len(found) > 1 or "\uff65" <= found <= "\uff9f":
            return "\n" if found == "\r\n" else normalize("NFKC", found)
        return _usual(found, language in _OWN_PUNCTUATION)

    return text.sub(_UNUSUAL, usual)


@lru_cache(4096)
def _usual(char: str, own_punctuation: bool) -> str:
    if category(char) == "Co":
        return ""
    if char in _CHARACTERS:
        return _CHARACTERS[char]
    if _SPACE.match(char):
        return " "
    if ord(char) in _LIGATURES:
        return normalize("NFKC", char)
    if decomposition(char).startswith(_VARIANTS) and not (own_punctuation and category(char)[0] not in "LN"):
        return normalize("NFKC", char)
    return char


def _is_invisible(char: str) -> bool:
    hidden = category(char) in _INVISIBLE and not char.isspace()
    return hidden or char in INVISIBLE_LETTERS or char in _SELECTORS
