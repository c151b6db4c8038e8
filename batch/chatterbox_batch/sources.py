"""Inputs to rows: JSONL, CSV, Parquet, texts, EPUBs, and folders of them. Read as streams."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow.parquet as pq
from pyarrow import fs

from chatterbox_batch.folder import locate, open_bytes
from chatterbox_batch.rows import Row, make_row

KINDS = (".jsonl", ".ndjson", ".csv", ".parquet", ".txt", ".epub")


class InputError(ValueError):
    """The input as a whole cannot be read."""


def read_rows(location: str, ignored: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a file or of all known files in a folder, in the order of their names. No id comes twice: the second
    row of an id is one with an error.

    Raises InputError, and OSError where the file system does.
    """
    plain, mark, query = location.partition("?") if "://" in location else (location, "", "")
    is_file = PurePosixPath(plain).suffix.lower() in KINDS
    base = (plain.rpartition("/")[0] if is_file else plain.rstrip("/")) or "."
    rows = (row for files, path, name in find(location) for row in _rows(files, path, name, ignored))
    return _unique(_with_clip(row, base, mark + query) for row in rows)


def find(location: str) -> list[tuple[Any, str, str]]:
    """The files of an input: file system, path, and the name by which rows without an id are called."""
    try:
        files, path = locate(location)
        info = files.get_file_info(path)
    except ValueError as error:
        raise InputError(f"{location}: {error}") from error
    if info.type == fs.FileType.NotFound:
        raise InputError(f"{location}: no such file or folder")
    if info.type == fs.FileType.File:
        if info.extension and f".{info.extension.lower()}" in KINDS:
            return [(files, path, PurePosixPath(path).stem)]
        raise InputError(f"{location}: use a file of {', '.join(KINDS)}, or a folder of them")
    inside = sorted(it.path for it in files.get_file_info(fs.FileSelector(path, recursive=True)) if it.is_file)
    known = [it for it in inside if PurePosixPath(it).suffix.lower() in KINDS]
    if not known:
        raise InputError(f"{location}: the folder has no file of {', '.join(KINDS)}")
    root = path.rstrip("/") + "/"
    return [(files, it, str(PurePosixPath(it.removeprefix(root)).with_suffix(""))) for it in known]


def _with_clip(row: Row, base: str, query: str) -> Row:
    """A row whose clip's relative path is one beside the input: it is read in another process."""
    clip = row.inputs.get("reference_audio")
    if clip is None or "://" in clip or clip.startswith(("data:", "/")):
        return row
    return replace(row, inputs={**row.inputs, "reference_audio": f"{base}/{clip}{query}"})


def _unique(rows: Iterable[Row]) -> Iterator[Row]:
    seen: set[bytes | str] = set()
    for number, row in enumerate(rows, 1):
        if row.id in seen:
            name = f"{row.id} (row {number})"
            yield Row(name, "", error=f"the id {row.id!r} is also that of an earlier row")
        else:
            seen.add(row.id)
            yield row


def _rows(files: Any, path: str, name: str, ignored: Collection[str]) -> Iterator[Row]:
    kind = PurePosixPath(path).suffix.lower()
    if kind == ".epub":
        from chatterbox_batch.books import epub, text_of

        with open_bytes(files, path) as file:
            chapters = epub.read(file).chapters
        for number, chapter in enumerate(chapters, 1):
            yield Row(f"{name}-{number:03d}", text_of(chapter))
    elif kind == ".txt":
        with open_bytes(files, path) as file:
            yield _text_row(name, file.read())
    elif kind == ".parquet":
        with files.open_input_file(path) as file:
            records = (row for batch in pq.ParquetFile(file).iter_batches(batch_size=256) for row in batch.to_pylist())
            yield from (make_row(row, f"{name}-{number:06d}", ignored) for number, row in enumerate(records, 1))
    else:
        read = _csv_rows if kind == ".csv" else _json_rows
        with open_bytes(files, path) as file:
            yield from read(file, name, ignored)


def _text_row(name: str, content: bytes) -> Row:
    try:
        return Row(name, content.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        return Row(name, "", error=f"not UTF-8: {error}")


def _json_rows(file: BinaryIO, name: str, ignored: Collection[str]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        fallback = f"{name}-{number:06d}"
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            yield Row(fallback, "", error=f"line {number} is no JSON: {error}")
            continue
        if isinstance(record, dict):
            yield make_row(record, fallback, ignored)
        else:
            yield Row(fallback, "", error=f"line {number} is no JSON object")


def _csv_rows(file: BinaryIO, name: str, ignored: Collection[str]) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # of a text; 131,072 characters else
    lines = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), restkey="", strict=True)
    if "text" not in (lines.fieldnames or ()):
        raise InputError(f"{name}.csv: the first line must name the columns, and one of them 'text'")
    for number, record in enumerate(lines, 1):
        fallback = f"{name}-{number:06d}"
        if "" in record:
            yield Row(record.get("id") or fallback, "", error="more values than the first line has columns")
        else:
            yield make_row(record, fallback, ignored)
