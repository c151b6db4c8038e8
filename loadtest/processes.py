"""Memory, threads, open files and shared memory of the server's processes, once a second."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from chatterbox_engine.launcher import TritonServer

RESOURCES = ("rss", "threads", "files", "shared_memory")


@dataclass(frozen=True)
class Usage:
    """Of all processes of a server together."""

    at: float
    """time.time()"""
    rss: int
    """Bytes, pages that processes share counted in each."""
    threads: int
    files: int
    shared_memory: int
    """Bytes of the server's own regions."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Watcher:
    """Takes a `Usage` every second in a thread of its own, between `__enter__` and `__exit__`."""

    def __init__(self, server: TritonServer) -> None:
        models = [psutil.Process(pid) for pid in server.stub_pids]
        servers = {psutil.Process(model.ppid()) for model in models}  # one: tritonserver itself
        guards = {psutil.Process(server.ppid()) for server in servers}
        self.usages: list[Usage] = []
        self._server = server
        self._processes = [*models, *servers, *guards]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ended.wait(1.0):
                self.usages.append(self._measure())
        except psutil.NoSuchProcess:
            return  # the server has ended; the failed requests tell

    def _measure(self) -> Usage:
        return Usage(
            at=time.time(),
            rss=sum(process.memory_info().rss for process in self._processes),
            threads=sum(process.num_threads() for process in self._processes),
            files=sum(process.num_fds() for process in self._processes),
            shared_memory=self._server.shared_memory_bytes(),
        )


def growth(usages: Sequence[Usage], settled: float) -> dict[str, tuple[float, float]]:
    """Each resource's median in the first and in the last fifth of the time from `settled` (time.time()) on.

    Empty when there are fewer than fifty measurements in it.
    """
    usages = [usage for usage in usages if usage.at >= settled]
    fifth = len(usages) // 5
    if fifth < 10:
        return {}
    first, last = usages[:fifth], usages[-fifth:]
    return {name: (_median(name, first), _median(name, last)) for name in RESOURCES}


def _median(resource: str, usages: Sequence[Usage]) -> float:
    return float(statistics.median(getattr(usage, resource) for usage in usages))
