"""A book to its audio: blocks are rows of a batch, whose files are joined to chapters of an M4B."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from chatterbox_batch.books import Block, Book, BookError
from chatterbox_batch.books.loudness import Samples, Target, levelled
from chatterbox_batch.books.m4b import peak_of, write_m4b
from chatterbox_batch.folder import Folder
from chatterbox_batch.parts import PART_CHARS, Part, parts_of
from chatterbox_batch.records import Records
from chatterbox_batch.rows import Row
from chatterbox_batch.worker import FADE_SECONDS, fade

_ENCODER_MARGIN = 1.0
"""dB by which the first attempt's limit is lower than the wanted peak, as AAC overshoots."""
_ATTEMPTS = 3
"""To encode the file, each with the margin that the one before lacked."""
_LEAD_SECONDS = 0.75
"""Silence at the start of a chapter: ACX wants half a second to one."""


@dataclass(frozen=True)
class Narration:
    """The blocks of a book, each a row of its own (a `Plan`). Only a block that is changed is spoken again."""

    book: Book
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `Client.speak` for all of them."""
    seed: int = 0
    limit: int = PART_CHARS

    def parts(self) -> Iterator[Part]:
        """See `Plan.parts`."""
        for chapter in self.rows():
            for _, row in chapter:
                yield from parts_of(row, limit=self.limit, seed=self.seed)

    def rows(self) -> list[list[tuple[Block, Row]]]:
        """The blocks of every chapter and their rows. An id names the content, and which of equal ones it is."""
        seen: Counter[str] = Counter()
        how = json.dumps([dict(self.inputs), self.seed, self.limit], sort_keys=True)
        found: list[list[tuple[Block, Row]]] = []
        for chapter in self.book.chapters:
            rows = []
            for block in chapter.blocks:
                digest = hashlib.blake2b(f"{how}\n{block.text}".encode(), digest_size=12).hexdigest()
                seen[digest] += 1
                rows.append((block, Row(f"{digest}-{seen[digest]}", block.text, self.inputs)))
            found.append(rows)
        return found


@dataclass(frozen=True)
class Pauses:
    """Seconds of silence."""

    heading: float = 1.2
    paragraph: float = 0.6
    chapter: float = 2.0
    """At the end of a chapter."""


@dataclass(frozen=True)
class Binding:
    """How the file is made."""

    pauses: Pauses = field(default_factory=Pauses)
    target: Target | None = None
    """None: the loudness is left as it is."""
    sample_rate: int = 44_100
    bit_rate: int = 96_000


def bind(narration: Narration, work: Folder, path: Path, binding: Binding) -> float:
    """Makes the M4B of a book that has been spoken, and returns its seconds.

    Raises BookError when some of it has not been spoken, OSError when the file cannot be written.
    """
    chapters = _chapters(narration, work, binding)
    seconds = [chapter.samples() / binding.sample_rate for chapter in chapters]
    draft, target, margin = path.with_name(path.name + ".partial"), binding.target, _ENCODER_MARGIN
    try:
        for _attempt in range(_ATTEMPTS):
            limited = target and replace(target, peak=target.peak - margin)
            pieces = (piece for chapter in chapters for piece in chapter.levelled(limited))
            _write(draft, narration.book, pieces, seconds, binding)
            excess = 0.0 if target is None else peak_of(draft) - target.peak
            if excess <= 0:
                break
            margin += excess + 0.1
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return sum(seconds)


def _write(path: Path, book: Book, pieces: Iterator[Samples], seconds: list[float], binding: Binding) -> None:
    tags = {"title": book.title, "album": book.title, "artist": book.author, "language": book.language}
    write_m4b(
        path,
        pieces,
        binding.sample_rate,
        [(chapter.title, length) for chapter, length in zip(book.chapters, seconds, strict=True)],
        bit_rate=binding.bit_rate,
        tags={name: value for name, value in tags.items() if value},
        cover=book.cover,
    )


def _chapters(narration: Narration, work: Folder, binding: Binding) -> list[_Chapter]:
    files = {row["id"]: row for row in Records(work).manifest("id", "file", "error")}
    rows = narration.rows()
    wrong = [
        error
        for blocks in rows
        for _, row in blocks
        if (error := (files[row.id]["error"] if row.id in files else "not spoken"))
    ]
    if wrong:
        total = sum(map(len, rows))
        raise BookError(f"{len(wrong)} of {total} paragraphs failed, the first with: {wrong[0]}")
    return [_Chapter(work, [(block, files[row.id]["file"]) for block, row in blocks], binding) for blocks in rows]


class _Chapter:
    """The audio of a chapter, as a stream that can be begun again."""

    def __init__(self, work: Folder, files: list[tuple[Block, str]], binding: Binding) -> None:
        self._work, self._files, self._binding = work, files, binding

    def samples(self) -> int:
        """Its length, at the file's sampling rate."""
        return sum(map(len, self._read()))

    def levelled(self, target: Target | None) -> Iterator[Samples]:
        """Its audio at a loudness."""
        return levelled(self._read, self._binding.sample_rate, target) if target is not None else self._read()

    def _read(self) -> Iterator[Samples]:
        rate = self._binding.sample_rate
        yield np.zeros(round(_LEAD_SECONDS * rate), np.float32)
        for number, (block, file) in enumerate(self._files, 1):
            with self._work.opened(file) as stream:
                spoken, own = soundfile.read(stream, dtype="float32")
            samples = spoken if own == rate else soxr.resample(spoken, own, rate, quality="HQ")
            yield fade(samples, round(FADE_SECONDS * rate), start=True, end=True)
            pauses = self._binding.pauses
            after = pauses.heading if block.heading else pauses.paragraph
            yield np.zeros(round((pauses.chapter if number == len(self._files) else after) * rate), np.float32)
