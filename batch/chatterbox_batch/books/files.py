"""Files to books, by their extensions."""

from __future__ import annotations

from pathlib import Path

from chatterbox_batch.books import Book, BookError, epub
from chatterbox_batch.books.texts import from_markdown, from_text


def read_book(path: Path) -> Book:
    """An .epub, .md, .markdown or .txt file. Raises BookError, or OSError when it cannot be read."""
    kind = path.suffix.lower()
    if kind == ".epub":
        with path.open("rb") as file:
            return epub.read(file)
    if kind not in (".md", ".markdown", ".txt"):
        raise BookError("use a file of .epub, .md or .txt")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BookError(f"not UTF-8: {error}") from error
    return (from_text if kind == ".txt" else from_markdown)(text, path.stem)
