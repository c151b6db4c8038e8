"""Passages to segments: at sentences as each language ends them, then at clauses, then at spaces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple
from unicodedata import category

from chatterbox_engine.text.passages import Text
from chatterbox_engine.text.sentence_ends import CLAUSES, WHOLE, pause_after, segment

_WORDS = re.compile(rf"(?<=\s)(?<!\.\s)(?=\S){WHOLE}")  # a full stop within a sentence is an abbreviation's
_SPACES = re.compile(r"(?<=\s)(?=\S)")
_SPACE = re.compile(r"\s+")
_LINE_END = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028]|(\u2029)")  # of str.splitlines; \u2029 ends a paragraph

_WINDOW = 8_000
"""Characters that sentencex gets at once. Beyond 10,240 it works in pieces of its own and loses line ends."""

_RANKS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""What it costs to end a part with a sentence, a clause, a word, any space, anything: shares of a part's length."""


@dataclass(frozen=True)
class Part:
    """A part of a text that is spoken by one run of T3."""

    text: Text
    pause: float
    """Seconds of silence after it; 0 after the last."""


class _Atom(NamedTuple):
    """A piece that is not split, without its outer whitespace."""

    start: int
    end: int
    rank: int
    """How bad it is to end a part with it: 0 for a sentence, more for a clause, a word, anything."""


def split(text: Text, language: str, max_chars: int = 300) -> list[Part]:
    """Splits a long text at sentences into parts of at most `max_chars` characters; a short one is left as it is.

    There are as few parts as fit, of similar lengths, as T3 speaks better with context; a paragraph ends one that is at
    least a third full. A sentence that is too long is split after a clause, else at a space, else anywhere, but not
    in a number, after an abbreviation or in a tag where there is another way. In a text that is split a run of
    whitespace becomes a space, a line end, or the two line ends of a paragraph; it is left out at the ends of parts.
    All else is in exactly one part. Takes linear time.
    """
    if len(text.string.strip()) <= max_chars:
        return [Part(text, 0.0)]
    text = text.sub(_SPACE, _squeeze)
    string = text.string
    atoms = list(_atoms(string, language, max_chars))
    starts = [atoms[first].start for first in _packed(atoms, string, max_chars)]
    parts = []
    for start, end in pairwise([*starts, len(string)]):
        pause = pause_after(string[start:end]) if end < len(string) else 0.0
        parts.append(Part(text[start:end].strip(), pause))
    return parts


def _squeeze(space: re.Match[str]) -> str:
    lines = sum(1 + bool(end[1]) for end in _LINE_END.finditer(space[0]))
    return "\n" * min(lines, 2) or " "


def _atoms(text: str, language: str, max_chars: int) -> Iterator[_Atom]:
    """Pieces of at most `max_chars` that have all of `text` but whitespace between them."""
    start = 0
    for sentence in _sentences(text, language):
        for piece, rank in _break(sentence, max_chars, (CLAUSES, _WORDS, _SPACES)):
            if stripped := piece.strip():
                first = start + piece.index(stripped[0])
                yield _Atom(first, first + len(stripped), rank)
            start += len(piece)


def _sentences(text: str, language: str) -> Iterator[str]:
    """Sentences whose concatenation is `text`, whatever lengths the library's have."""
    start = 0
    while start < len(text):
        window = text[start : start + _WINDOW]
        ends = [end for end in accumulate(map(len, segment(window, language))) if end < len(window)]
        if start + len(window) == len(text):
            ends.append(len(window))
        elif not ends:
            ends.append(max((word.start() for word in _WORDS.finditer(window)), default=len(window)))
        # a last sentence that the window cuts off begins the next one
        for first, end in pairwise([0, *ends]):
            yield window[first:end]
        start += ends[-1]


def _break(piece: str, max_chars: int, ways: tuple[re.Pattern[str], ...], rank: int = 0) -> Iterator[tuple[str, int]]:
    """Pieces whose concatenation is `piece`, and the rank of each one's end."""
    if len(piece.strip()) <= max_chars:
        yield piece, rank
        return
    deeper = len(_RANKS) - len(ways) - 1
    parts = ways[0].split(piece) if ways else list(_cut(piece, max_chars))
    for number, part in enumerate(parts, 1):
        end = rank if number == len(parts) else deeper
        if ways:
            yield from _break(part, max_chars, ways[1:], end)
        else:
            yield part, end


def _cut(piece: str, max_chars: int) -> Iterator[str]:
    """Parts of a long word of similar lengths; not before a combining mark, nor in a number, where that is possible."""
    start = 0
    for left in range(-(-len(piece) // max_chars), 1, -1):
        latest = min(start + max_chars, len(piece) - left + 1)
        earliest = max(start + 1, len(piece) - (left - 1) * max_chars)
        wanted = start + (len(piece) - start) // left
        places = sorted((abs(place - wanted), place) for place in range(earliest, latest + 1))
        end = next((place for _, place in places if _may_end(piece, place)), wanted)
        yield piece[start:end]
        start = end
    yield piece[start:]


def _may_end(piece: str, place: int) -> bool:
    before, after = piece[place - 1], piece[place]
    return category(after)[0] != "M" and not (before.isdecimal() and after.isdecimal())


def _packed(atoms: Sequence[_Atom], text: str, max_chars: int) -> Iterator[int]:
    """The first atom of every part."""
    run = [0]  # first atoms of parts that no paragraph ends
    for number in range(1, len(atoms)):
        start, before = atoms[run[-1]].start, atoms[number - 1].end
        if text.count("\n", before, atoms[number].start) >= 2 and before - start >= max_chars // 3:
            yield from _balanced(atoms, run, number, max_chars)
            run = [number]
        elif atoms[number].end - start > max_chars:
            run.append(number)
    yield from _balanced(atoms, run, len(atoms), max_chars)


def _balanced(atoms: Sequence[_Atom], full: Sequence[int], end: int, max_chars: int) -> Iterator[int]:
    """The first atoms of as many parts of similar lengths.

    full: those of parts that take all that fits; end: the atom after the last.
    """
    last = atoms[end - 1].end
    earliest = _earliest(atoms, full, end, max_chars)
    first = full[0]
    for left in range(len(full), 1, -1):
        yield first
        start = atoms[first].start
        wanted = (last - start) / left
        costs = {}
        for after in range(max(first + 1, earliest[left - 1]), end):
            atom = atoms[after - 1]
            if atom.end - start > max_chars:
                break
            costs[abs(atom.end - start - wanted) + _RANKS[atom.rank] * max_chars] = after
        first = costs[min(costs)]
    yield first


def _earliest(atoms: Sequence[_Atom], full: Sequence[int], end: int, max_chars: int) -> Sequence[int]:
    """By number of parts: the first atom from which on all fit into so many."""
    found = [end]
    first = end
    for _ in full:
        last = atoms[first - 1].end
        while first > full[0] and last - atoms[first - 1].start <= max_chars:
            first -= 1
        found.append(first)
    return found
