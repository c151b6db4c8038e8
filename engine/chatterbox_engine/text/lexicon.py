"""Pronunciations: words, and what is spoken for them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache

from chatterbox_engine.errors import InvalidRequest, quote
from chatterbox_engine.text.passages import Text, is_speakable

MOST_ENTRIES = 10_000
LONGEST_ENTRY = 200
"""Characters of a word or of what is spoken for it."""


def parse(given: str, name: str) -> dict[str, str]:
    """The entries of a JSON object. Raises InvalidRequest, which calls it `name`."""
    try:
        entries = json.loads(given)
    except ValueError as error:
        raise InvalidRequest(f"{name} is not JSON: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(spoken, str) for spoken in entries.values()):
        raise InvalidRequest(f'{name} must be an object of words and what is spoken for them: {{"Nguyen": "win"}}')
    if len(entries) > MOST_ENTRIES:
        raise InvalidRequest(f"{name} has {len(entries)} entries, at most {MOST_ENTRIES} are allowed")
    for word, spoken in entries.items():
        if not is_speakable(word) or max(len(word), len(spoken)) > LONGEST_ENTRY:
            raise InvalidRequest(f"{name}: {quote(word)} is no word, or its entry has over {LONGEST_ENTRY} characters")
    return entries


def pronounced(text: Text, entries: Mapping[str, str]) -> Text:
    """The text with whole words replaced, the longest entry first.

    An entry without capitals is found in any case, one with capitals only as it is written.
    """
    if not entries:
        return text

    def spoken(match: re.Match[str]) -> str:
        return entries[match[0] if match[0] in entries else match[0].lower()]

    return text.sub(_pattern(tuple(entries)), spoken)


@lru_cache(16)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    ordered = sorted(words, key=len, reverse=True)
    ways = (re.escape(word) if word != word.lower() else f"(?i:{re.escape(word)})" for word in ordered)
    return re.compile(rf"(?<!\w)(?:{'|'.join(ways)})(?!\w)")
