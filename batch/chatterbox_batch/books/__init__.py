"""Books: chapters of paragraphs, from EPUB, Markdown and plain text."""

from __future__ import annotations

from dataclasses import dataclass, field


class BookError(ValueError):
    """A book cannot be read; the message says why."""


@dataclass(frozen=True)
class Block:
    """A heading or a paragraph."""

    text: str
    heading: bool = False


@dataclass(frozen=True)
class Chapter:
    """A chapter with the title of its mark."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Book:
    """A book to speak."""

    title: str
    chapters: tuple[Chapter, ...]
    author: str = ""
    language: str = ""
    """A code like `en`; empty: unknown."""
    cover: bytes = field(default=b"", repr=False)
    """A JPEG or PNG file; empty: none."""


def text_of(chapter: Chapter) -> str:
    """A chapter as one text; an empty line ends a paragraph."""
    return "\n\n".join(block.text for block in chapter.blocks)


def chapters_of(blocks: list[Block], starts: dict[int, str], untitled: str) -> tuple[Chapter, ...]:
    """Chapters from a book's blocks. starts: their titles, by the number of their first block. What stands before the
    first of them is a chapter called `untitled`."""
    marks = sorted({0: untitled, **starts}.items())
    ends = [number for number, _ in marks[1:]] + [len(blocks)]
    found = [
        Chapter(title, tuple(blocks[start:end])) for (start, title), end in zip(marks, ends, strict=True) if end > start
    ]
    return tuple(found)
