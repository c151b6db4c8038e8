"""What has been spoken: a record for each part, and `manifest.parquet` with one row for each row of the input.

A record is written after its audio, so that what it tells is there. Records of rows that the manifest has are deleted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chatterbox_batch.folder import Folder

MANIFEST = "manifest.parquet"
WORK = ".parts"
"""The folder of records and of the audio of parts."""

COLUMNS = pa.schema(
    {
        "id": pa.string(),
        "file": pa.string(),
        "seconds": pa.float64(),
        "seed": pa.int64(),
        "rtf": pa.float64(),
        "error": pa.string(),
    }
)
"""`file` is a name in the folder; what an error leaves unknown is null, as is the error of a row that has none."""

_PLAIN = re.compile(r"[\w-][\w.-]{0,99}", re.ASCII)


@dataclass(frozen=True)
class Record:
    """The outcome of one part, or of a row whose parts have been joined (`count` 1)."""

    id: str
    key: str
    """`Part.key`."""
    index: int
    count: int
    """Parts of the row."""
    characters: int
    pause: float
    """Seconds of silence after it."""
    seed: int
    file: str = ""
    seconds: float = 0.0
    """Of its file's audio."""
    rtf: float | None = None
    error: str = ""


def file_name(id: str, extension: str) -> str:
    """A name for the audio of a row: its id, where every file system takes that, else something like it."""
    if _PLAIN.fullmatch(id):
        return f"{id}.{extension}"
    readable = re.sub(r"[^\w.-]+", "_", id, flags=re.ASCII).strip("._")[:80]
    return f"{readable}-{hashlib.blake2b(id.encode(), digest_size=6).hexdigest()}.{extension}"


class Records:
    """The records and the manifest of an output folder. Can be sent to other processes."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def put(self, record: Record) -> None:
        """Keeps the record of a part that has been spoken."""
        self.folder.write(_name(record.key), json.dumps(asdict(record)).encode())

    def find(self, key: str) -> Record | None:
        """The record of a part that has been spoken."""
        try:
            return Record(**json.loads(self.folder.read(_name(key))))
        except FileNotFoundError:
            return None

    def keys(self) -> set[str]:
        """The parts that have been spoken, but those of rows in the manifest."""
        names = self.folder.names(WORK)
        return {name.removeprefix(f"{WORK}/").removesuffix(".json") for name in names if name.endswith(".json")}

    def sweep(self) -> None:
        """Deletes what killed writers left. Called while nobody writes."""
        self.folder.sweep()
        self.folder.sweep(WORK)

    def forget(self, keys: Iterable[str]) -> None:
        """Deletes records with the audio of their parts."""
        for key in keys:
            self.folder.delete(_name(key))
            self.folder.delete(part_file(key))

    def manifest(self, *columns: str) -> Iterator[dict[str, Any]]:
        """The rows of the manifest, or some of their columns; none when there is no manifest."""
        if self.folder.has(MANIFEST):
            with self.folder.opened(MANIFEST) as file:
                for batch in pq.ParquetFile(file).iter_batches(columns=list(columns) or None):
                    yield from batch.to_pylist()

    def add_to_manifest(self, records: Iterable[Record]) -> None:
        """Adds rows to the manifest."""
        self._rewrite([self._table(records)])

    def drop_failed(self) -> None:
        """Takes the rows with an error out of the manifest."""
        self._rewrite([], keep=lambda batch: batch.filter(pc.is_null(batch["error"])))

    def _rewrite(self, added: list[pa.Table], keep: Any = lambda batch: batch) -> None:
        """Writes the manifest again, from a stream of the one that is there."""
        with self.folder.writing(MANIFEST) as stream, pq.ParquetWriter(stream, COLUMNS) as writer:
            if self.folder.has(MANIFEST):
                with self.folder.opened(MANIFEST) as file:
                    for batch in pq.ParquetFile(file).iter_batches():
                        writer.write_batch(keep(batch))
            for table in added:
                writer.write_table(table)

    @staticmethod
    def _table(records: Iterable[Record]) -> pa.Table:
        rows = [
            {
                "id": record.id,
                "file": record.file or None,
                "seconds": None if record.error else record.seconds,
                "seed": record.seed,
                "rtf": record.rtf,
                "error": record.error or None,
            }
            for record in records
        ]
        return pa.Table.from_pylist(rows, COLUMNS)


def part_file(key: str) -> str:
    """Where the audio of a part is kept until its row is joined."""
    return f"{WORK}/{key}.flac"


def _name(key: str) -> str:
    return f"{WORK}/{key}.json"
