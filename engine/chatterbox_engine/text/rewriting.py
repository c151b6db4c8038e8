"""Changes of a whole text that keep the way back to its source: lower case, decomposition, a package's rewriting."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from unicodedata import combining, is_normalized, normalize

from chatterbox_engine.text.passages import Edit, Text

Pieces = Sequence[tuple[str, str]]
"""The parts of a text in their order, and what stands in their places; parts that are left out may be missing."""

_SKIPPED = 16
"""Characters between two pieces, at most."""


def lowered(text: Text) -> Text:
    """As `str.lower`, which knows the end of a Greek word and makes two characters of a dotted I."""
    string = text.string.lower()
    if len(string) == len(text):
        return Text(string, text.starts, text.ends)
    ends = accumulate((len(char.lower()) for char in text.string), initial=0)
    return text.edited((at, at + 1, string[start:end]) for at, (start, end) in enumerate(pairwise(ends)))


def decomposed(text: Text) -> Text:
    """In NFKD. Its order of marks changes only between two characters that are none."""
    string = text.string
    if is_normalized("NFKD", string):
        return text
    starts = [at for at, char in enumerate(string) if not at or not combining(normalize("NFKD", char)[0])]
    changed = ((start, end, normalize("NFKD", string[start:end])) for start, end in pairwise([*starts, len(string)]))
    return text.edited((start, end, new) for start, end, new in changed if new != string[start:end])


def aligned(old: str, new: str) -> Pieces:
    """Pieces of a text that a package has rewritten without telling where."""
    found: list[tuple[str, str]] = []
    for tag, start, end, begin, stop in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            found += ((char, char) for char in old[start:end])
        else:
            found.append((old[start:end], new[begin:stop]))
    return found


def rewritten(text: Text, pieces: Pieces) -> Text:
    """The text as the pieces have it."""
    edits: list[Edit] = []
    at = 0
    for old, new in pieces:
        start = text.string.find(old, at, at + len(old) + _SKIPPED)
        if start < 0:  # the package has changed more than it tells
            edits.append((at, at, new))
            continue
        if start > at:
            edits.append((at, start, ""))
        at = start + len(old)
        if new != old:
            edits.append((start, at, new))
    return text.edited([*edits, (at, len(text), "")] if at < len(text) else edits)
