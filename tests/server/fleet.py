"""Several `chatterbox-serve` on loopback addresses of their own, and clients that keep them busy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from chatterbox_client import ChatterboxClientError, Client
from chatterbox_engine.launcher.ports import ReservedPorts
from tests.server.envoy import wait_for

FAST = {
    "CHATTERBOX_CFM_STEPS": "1",
    "CHATTERBOX_PROMPT_SECONDS": "1",
    "CHATTERBOX_PRELOAD_ENCODERS": "0",
    "CHATTERBOX_MAX_SLOTS": "1",
    "CHATTERBOX_REQUEST_LOG": "off",
}
"""Little work for each request, and fewer slots than clients, so that utterances wait."""


class Server:
    """One of them; all have the same ports."""

    def __init__(self, address: str, checkpoint: Path, ports: tuple[int, int, int], log: Path) -> None:
        """ports: of HTTP, gRPC and metrics."""
        self.address, self._log = address, log
        self.metrics = f"{address}:{ports[2]}"
        names = ("http", "grpc", "metrics")
        command = [sys.executable, "-m", "chatterbox_engine.launcher.cli", f"--host={address}", "--no-gateway"]
        command += [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
        command += ["--checkpoint", str(checkpoint), "--grace-seconds=300"]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **FAST, "CHATTERBOX_CACHE": str(log.parent)},
            )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        assert b"http" in self.process.stdout.readline(), self._log.read_text()

    def send(self, number: int) -> None:
        """Sends a signal to all of its processes, as if its machine were concerned."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended with one that was killed before it
                process.send_signal(number)

    def stop(self) -> int:
        """Stops it as its pod is stopped; returns its exit status once it has ended."""
        with self.process:  # which closes its pipe
            self.process.send_signal(signal.SIGTERM)
            return self.process.wait(400)

    def kill(self) -> None:
        """Ends all of its processes at once."""
        with self.process, contextlib.suppress(psutil.NoSuchProcess):  # it has ended
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)


class Fleet:
    """Starts servers; ends them when it is closed."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self._checkpoint, self._folder = checkpoint, folder
        reserved = ReservedPorts("127.0.0.1", [0] * 3)
        reserved.release()
        http, grpc, metrics = reserved.numbers
        self.ports = (http, grpc, metrics)
        self.servers: list[Server] = []
        """Those that run."""
        self._made = 0

    def start(self, count: int) -> list[Server]:
        """New servers, each with a new address, ready."""
        started = []
        for _ in range(count):
            self._made += 1
            folder = self._folder / f"server{self._made}"
            folder.mkdir()
            started.append(Server(f"127.0.0.{10 + self._made}", self._checkpoint, self.ports, folder / "log"))
        self.servers += started
        for server in started:
            server.wait_until_ready()
        return started

    def close(self) -> None:
        for server in self.servers:
            server.kill()


@dataclass(frozen=True)
class Outcome:
    """A request: when it began, and why it failed, if it did."""

    kind: str
    begun: float
    error: ChatterboxClientError | None


class Load:
    """Clients that speak short texts between `__enter__` and `__exit__`, each one by one over a connection of its
    own: whole requests over HTTP and gRPC, and streams."""

    KINDS = ("http", "grpc", "stream")

    def __init__(self, http: str, grpc: str, clients: int, seconds: float = 0.4) -> None:
        """seconds: at most, of the audio of each request."""
        self._http, self._grpc, self._seconds = http, grpc, seconds
        self._pool = ThreadPoolExecutor(clients)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: list[Outcome] = []
        self._clients: list[Future[None]] = []
        self._count = clients

    def __enter__(self) -> Load:
        kinds = [self.KINDS[number % len(self.KINDS)] for number in range(self._count)]
        self._clients = [self._pool.submit(self._run, kind, number) for number, kind in enumerate(kinds)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._pool:
            for client in self._clients:
                client.result()

    def more(self, count: int, seconds: float = 300) -> None:
        """Waits until so many more requests have been answered."""
        until = len(self.outcomes) + count
        wait_for(lambda: len(self.outcomes) >= until, f"{count} more requests", seconds)

    def failures(self) -> list[Outcome]:
        with self._lock:
            return [outcome for outcome in self.outcomes if outcome.error is not None]

    def kinds(self) -> Counter[str]:
        """How many were answered, by kind."""
        with self._lock:
            return Counter(outcome.kind for outcome in self.outcomes if outcome.error is None)

    def _run(self, kind: str, number: int) -> None:
        protocol = "http" if kind == "http" else "grpc"
        with Client(self._http if kind == "http" else self._grpc, protocol, timeout=240) as client:
            for seed in range(number * 100_000, (number + 1) * 100_000):
                if self._ended.is_set():
                    return
                begun = time.monotonic()
                error = self._speak(client, kind, seed)
                with self._lock:
                    self.outcomes.append(Outcome(kind, begun, error))

    def _speak(self, client: Client, kind: str, seed: int) -> ChatterboxClientError | None:
        try:
            if kind == "stream":
                chunks = list(client.stream("Hello there.", seed=seed, max_seconds=self._seconds))
                assert chunks[-1].is_last
            else:
                assert client.speak("Hello.", seed=seed, max_seconds=self._seconds).duration > 0
        except ChatterboxClientError as error:
            return error
        return None


@contextlib.contextmanager
def fleet_of(checkpoint: Path, folder: Path, count: int) -> Iterator[Fleet]:
    """Servers for a module's tests."""
    fleet = Fleet(checkpoint, folder)
    try:
        fleet.start(count)
        yield fleet
    finally:
        fleet.close()
