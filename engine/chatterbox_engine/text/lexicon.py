"""Pronunciations: words, and what is spoken for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from chatterbox_engine.errors import InvalidRequest, quote
from chatterbox_engine.text.passages import Edit, Text, is_speakable

MOST_ENTRIES = 10_000
LONGEST_ENTRY = 200
"""Characters of a word or of what is spoken for it."""

_WORD = re.compile(r"\w")
_PIECE = re.compile(r"\w+|[^\w\s]")


def parse(given: str, name: str) -> dict[str, str]:
    """The entries of a JSON object. Raises InvalidRequest, which calls it `name`."""
    try:
        entries = json.loads(given)
    except ValueError as error:
        raise InvalidRequest(f"{name} is not JSON: {error}") from error
    return checked(entries, name)


def checked(entries: Any, name: str) -> dict[str, str]:
    """The entries, if they are some. Raises InvalidRequest, which calls them `name`."""
    if not isinstance(entries, dict) or not all(isinstance(text, str) for pair in entries.items() for text in pair):
        raise InvalidRequest(f'{name} must be an object of words and what is spoken for them: {{"Nguyen": "win"}}')
    if len(entries) > MOST_ENTRIES:
        raise InvalidRequest(f"{name} has {len(entries)} entries, at most {MOST_ENTRIES} are allowed")
    for word, spoken in entries.items():
        if not is_speakable(word) or max(len(word), len(spoken)) > LONGEST_ENTRY:
            raise InvalidRequest(f"{name}: {quote(word)} is no word, or its entry has over {LONGEST_ENTRY} characters")
    return {word.strip(): spoken for word, spoken in entries.items()}


class Lexicon:
    """Entries, ready to be looked up. Immutable."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = entries
        self._by_beginning: dict[str, list[str]] = {}
        for word in sorted(entries, key=len, reverse=True):
            match = _PIECE.match(word)
            assert match is not None, "every entry begins with what is no space"
            self._by_beginning.setdefault(match[0].lower(), []).append(word)

    def pronounced(self, text: Text) -> Text:
        """The text with whole words replaced, the longest entry first. Takes linear time for any number of entries.

        An entry without capitals is found in any case, one with capitals only as it is written.
        """
        return text.edited(self._edits(text.string))

    def _edits(self, string: str) -> Iterator[Edit]:
        done = 0
        for piece in _PIECE.finditer(string):
            start = piece.start()
            if start < done or (start and _is_word(string[start - 1])):
                continue
            for word in self._by_beginning.get(piece[0].lower(), ()):
                end = start + len(word)
                found = string[start:end]
                if (found == word or found.lower() == word) and not _is_word(string[end : end + 1]):
                    yield start, end, self.entries[word]
                    done = end
                    break


def _is_word(char: str) -> bool:
    return _WORD.match(char) is not None
