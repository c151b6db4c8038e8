"""Folders and files of every file system that pyarrow reaches: local paths, `s3://`, `gs://`, `hdfs://` ..."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pyarrow import fs


def locate(location: str) -> tuple[Any, str]:
    """The file system and the path of a local path or a URI. Raises ValueError for a URI of no known file system."""
    if "://" in location:
        found: tuple[Any, str] = fs.FileSystem.from_uri(location)
        return found
    return fs.LocalFileSystem(), str(Path(location).absolute())


def read_file(location: str) -> bytes:
    """A file's content. Raises OSError, or ValueError for a URI of no known file system."""
    files, path = locate(location)
    with files.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


@contextlib.contextmanager
def open_bytes(files: Any, path: str) -> Iterator[BinaryIO]:
    """A file as a buffered stream of bytes."""
    with files.open_input_file(path) as stream:
        yield cast(BinaryIO, io.BufferedReader(stream, 1 << 20))


class Folder:
    """A folder that is written to. Every file appears whole or not at all, whoever is killed while writing it.

    Can be sent to other processes.
    """

    def __init__(self, location: str) -> None:
        """Raises ValueError for a URI of no known file system, OSError when the folder cannot be made."""
        self.location = location
        self._files, self._root = locate(location)
        self._files.create_dir(self._root, recursive=True)

    def write(self, name: str, content: bytes) -> None:
        """Makes or replaces a file."""
        with self.writing(name) as stream:
            stream.write(content)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """A stream to a file, which appears when the block ends without an error."""
        path = self._path(name)
        parent = str(PurePosixPath(path).parent)
        if parent != self._root:
            self._files.create_dir(parent, recursive=True)
        partial = f"{path}.{os.getpid()}-{threading.get_ident()}.partial"
        try:
            with self._files.open_output_stream(partial) as stream:
                yield stream
        except BaseException:
            with contextlib.suppress(OSError):
                self._files.delete_file(partial)
            raise
        self._files.move(partial, path)

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        with self._files.open_input_stream(self._path(name)) as stream:
            content: bytes = stream.read()
        return content

    def opened(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file as a stream of bytes."""
        return open_bytes(self._files, self._path(name))

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return bool(self._files.get_file_info(self._path(name)).type == fs.FileType.File)

    def names(self, folder: str) -> list[str]:
        """The files in a folder inside of this one, by their names here, sorted. None when there is no such folder."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        found = self._files.get_file_info(selector)
        return sorted(f"{folder}/{info.base_name}" for info in found if info.type == fs.FileType.File)

    def sweep(self, folder: str = "") -> None:
        """Deletes what writers left in this folder, or one inside of it, that were killed while they wrote."""
        selector = fs.FileSelector(self._path(folder).rstrip("/"), allow_not_found=True)
        for info in self._files.get_file_info(selector):
            if info.base_name.endswith(".partial"):
                self._files.delete_file(info.path)

    def delete(self, name: str) -> None:
        """Deletes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
