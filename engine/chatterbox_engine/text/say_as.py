"""What SSML's `say-as` asks for, in words."""

from __future__ import annotations

import re
from datetime import date

from chatterbox_engine.text import numbers
from chatterbox_engine.text.passages import Text
from chatterbox_engine.text.spoken import spoken

_LETTERS = {"characters", "spell-out", "verbatim"}
_NORMALISED = {"time", "currency", "unit", "fraction"}
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FIELDS = {"y": r"(?P<y>\d{4})", "m": r"(?P<m>\d\d?)", "d": r"(?P<d>\d\d?)"}


def say_as(text: str, way: str, form: str, language: str) -> str | None:
    """A text as it is to be read; None where the way is unknown or the text is nothing of the kind."""
    if way in _LETTERS:
        return " ".join(_character(char, language) for char in text if char.isalnum()) or None
    if way in ("digits", "telephone"):
        said = (_character(char, language) for char in text if char.isalnum())
        return " ".join(said) if any(map(str.isdecimal, text)) else None
    if way in ("cardinal", "number", "ordinal"):
        return _number(text, way, language)
    if way == "date":
        return _date(text, form or "ymd", language)
    return spoken(Text.of(text), language).string if way in _NORMALISED else None


def _character(char: str, language: str) -> str:
    return numbers.digits(char, language) if char.isdecimal() and language in numbers.LANGUAGES else char


def _number(text: str, way: str, language: str) -> str | None:
    if not _NUMBER.fullmatch(text):
        return None
    if way == "ordinal" and text.isdecimal() and language in numbers.LANGUAGES:
        return numbers.ordinal(int(text), language)
    return None if way == "ordinal" else spoken(Text.of(text), language).string


def _date(text: str, form: str, language: str) -> str | None:
    """A date whose fields stand in the order of `form`: some of y, m and d, each at most once."""
    if sorted(form) != ["d", "m", "y"]:
        return None
    match = re.fullmatch(r"\D".join(_FIELDS[field] for field in form), text)
    if match is None:
        return None
    try:
        day = date(int(match["y"]), int(match["m"]), int(match["d"]))
    except ValueError:
        return None
    return spoken(Text.of(day.isoformat()), language).string
