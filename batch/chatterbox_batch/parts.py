"""Rows to parts: what is spoken by one request, and spoken again when a run was killed meanwhile."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from chatterbox_batch.rows import Row

PART_CHARS = 1_500
"""Characters of a part: about 100 s of audio."""

_PARAGRAPHS = re.compile(r"\s*\n\s*\n\s*")
_ABBREVIATIONS = ("[A-Z]", "Dr", "Mr", "Mrs", "Ms", "Prof", "St", "Sr", "Jr", "No", "Nr", "vs", "ca", "Mme", "Sra")
_NO_ABBREVIATION = "".join(rf"(?<!\b{word}\.)" for word in _ABBREVIATIONS)
_SENTENCES = re.compile(
    rf"[.!?\u2026]{_NO_ABBREVIATION}[\"')\]\u2019\u201d\u00bb]*\s+(?![a-z])|[\u3002\uff01\uff1f\u0964\u06d4\u061f]\s*"
)
_CLAUSES = re.compile(r"(?<=[,;:\u2013\u2014\u060c\u061b])\s+|(?<=[\u3001\uff0c\uff1b])\s*")
_WORDS = re.compile(r"\s+")
_LEVELS = ((_PARAGRAPHS, 0.6), (_SENTENCES, 0.3), (_CLAUSES, 0.15), (_WORDS, 0.0))
"""Where a text may be split, the best first, and the seconds of silence there: those between the engine's segments."""


@dataclass(frozen=True)
class Piece:
    """A piece of a text, and the seconds of silence after it."""

    text: str
    pause: float


@dataclass(frozen=True)
class Part:
    """A piece of a row's text with everything that its request needs; all values go through JSON and Arrow."""

    id: str
    """The row's."""
    index: int
    count: int
    """Parts of the row."""
    text: str
    pause: float
    """Seconds of silence after it."""
    seed: int
    inputs: str = "{}"
    """JSON: the other arguments of `Client.speak`."""
    error: str = ""
    """Why it cannot be spoken."""

    @property
    def key(self) -> str:
        """Names what it says and how: the same again in a later run, unless its row has changed."""
        content = json.dumps(asdict(self), sort_keys=True).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()


def parts_of(row: Row, *, limit: int = PART_CHARS, seed: int = 0) -> list[Part]:
    """The parts of a row. One that has no seed gets one derived from `seed` and its id, so that it is the same in every
    run; the first part has the row's seed, later ones have seeds derived from it."""
    if row.error:
        return [Part(row.id, 0, 1, row.text, 0.0, 0, error=row.error)]
    inputs: dict[str, Any] = dict(row.inputs)
    own = inputs.pop("seed", None)
    first = derive_seed(seed, row.id) if own is None else own
    pieces = [Piece(row.text, 0.0)] if _is_ssml(row.text, inputs) else list(split(row.text, limit))
    pieces = [piece for piece in pieces if is_speakable(piece.text)] or pieces[:1]
    encoded = json.dumps(inputs, sort_keys=True)
    return [
        Part(
            row.id, index, len(pieces), piece.text, piece.pause, derive_seed(first, index) if index else first, encoded
        )
        for index, piece in enumerate(pieces)
    ]


def derive_seed(seed: int, name: str | int) -> int:
    """A seed of 63 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1


def is_speakable(text: str) -> bool:
    """Whether there is a letter or a digit in a text: "* * *" between two scenes has none."""
    return any(map(str.isalnum, text))


def split(text: str, limit: int) -> Iterator[Piece]:
    """Pieces of at most `limit` characters, which end at paragraphs, else at sentences, else at clauses, else at
    spaces. A text that fits is left as it is."""
    if len(text) <= limit:
        yield Piece(text, 0.0)
        return
    piece, pause = "", 0.0
    for atom, after in _atoms(text.strip(), limit, 0.0, _LEVELS):
        if piece and len((piece + atom).strip()) > limit:
            yield Piece(piece.strip(), pause)
            piece = ""
        piece, pause = piece + atom, after
    yield Piece(piece.strip(), 0.0)


def _atoms(
    text: str, limit: int, pause: float, levels: tuple[tuple[re.Pattern[str], float], ...]
) -> Iterator[tuple[str, float]]:
    """Texts that fit, whose concatenation is `text`, each with the pause at a split after it."""
    if len(text.strip()) <= limit:
        yield text, pause
    elif not levels:
        yield from ((text[start : start + limit], pause) for start in range(0, len(text), limit))
    else:
        (ends, after), *rest = levels
        stops = [mark.end() for mark in ends.finditer(text) if 0 < mark.end() < len(text)]
        *firsts, last = (text[start:stop] for start, stop in pairwise([0, *stops, len(text)]))
        for first in firsts:
            yield from _atoms(first, limit, after, tuple(rest))
        yield from _atoms(last, limit, pause, tuple(rest))


def _is_ssml(text: str, inputs: Mapping[str, Any]) -> bool:
    return inputs.get("markup") == "auto" and text.lstrip().startswith("<speak")
