"""The shared-memory regions of the Python backend. Once a model is ready the launcher takes their names away, so that
they end with the processes that have them open; a server that is killed before leaves its own behind.

Every server has a prefix that names its owner, so that the regions of an owner that is no more can be told from those
of a live one. The pid namespace is part of it: with `--ipc=host` containers share /dev/shm but not their pids.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from chatterbox_engine.launcher.processes import read_process

SHARED_MEMORY = Path("/dev/shm")
_NAME = re.compile(r"chatterbox_(?P<namespace>\d+)_(?P<pid>\d+)_(?P<start>\d+)_\d+_.*")
_numbers = itertools.count()


def new_prefix() -> str:
    """A prefix that no other server has."""
    process = read_process(os.getpid())
    assert process is not None
    return f"chatterbox_{_pid_namespace()}_{process.pid}_{process.start_time}_{next(_numbers)}_"


def remove_regions(prefix: str, folder: Path = SHARED_MEMORY) -> None:
    """Removes the regions of one server."""
    assert prefix.startswith("chatterbox_")
    for path in folder.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def hide_regions(prefix: str, pids: Iterable[int], folder: Path = SHARED_MEMORY) -> None:
    """Removes the names of the regions of one server that one of the processes has open. A region whose model is still
    to open it keeps its name."""
    for pid in pids:
        for name, _ in _open_regions(prefix, pid, folder):
            name.unlink(missing_ok=True)


def region_bytes(prefix: str, pid: int, folder: Path = SHARED_MEMORY) -> int:
    """Length of all regions of one server that its process has open, whether they still have a name or not."""
    return sum({status.st_ino: status.st_size for _, status in _open_regions(prefix, pid, folder)}.values())


def _open_regions(prefix: str, pid: int, folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Name and status of each descriptor of a process. A name that is gone ends in " (deleted)"."""
    with contextlib.suppress(FileNotFoundError):  # the process has ended
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                name = path.readlink()
                if str(name).startswith(f"{folder}/{prefix}"):
                    yield name, path.stat()


def remove_stale_regions(folder: Path = SHARED_MEMORY) -> list[str]:
    """Removes and names the regions whose owner, a process of this pid namespace, has ended."""
    stale = [path for path in folder.glob("chatterbox_*") if _is_stale(path.name)]
    for path in stale:
        path.unlink(missing_ok=True)
    return [path.name for path in stale]


def _is_stale(name: str) -> bool:
    match = _NAME.fullmatch(name)
    if not match or match["namespace"] != _pid_namespace():
        return False
    owner = read_process(int(match["pid"]))
    return owner is None or owner.start_time != int(match["start"])


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)
