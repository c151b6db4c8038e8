"""The local socket between the model that owns the engine and the streaming front, two processes of one server.

Why not BLS: calling a decoupled model from a Python model deadlocks under load. The socket lies in a private folder,
so whoever can connect is as trusted as this process, and messages are pickled. One connection, with one thread at each
end that reads it:

    front                       engine
    Open(number, tensors)   ->
    GiveUp(number)          ->
                            <-  Part(number, tensors, last)
                            <-  Failed(number, error)

A stream ends with its last part or with an error. When either process dies, the other one reads the end of the
connection: the front then fails its streams, the engine gives them up. Imports no torch: the front uses it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy.typing as npt

from chatterbox_engine.errors import ConfigError, EngineFailed, RequestError

FOLDER_VARIABLE = "CHATTERBOX_SOCKETS"
"""Names a folder of this server's own that only its user may enter. The launcher makes it."""

Tensors = Mapping[str, npt.NDArray[Any]]

_FRONT_SUFFIX = "_stream"  # the client adds it too
_RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class Open:
    """A stream begins. `tensors` are the request's inputs, not yet checked."""

    number: int
    tensors: Tensors


@dataclass(frozen=True)
class GiveUp:
    """The stream's client is gone."""

    number: int


@dataclass(frozen=True)
class Ready:
    """The engine takes streams: its first message."""


@dataclass(frozen=True)
class Part:
    """A chunk, as the output tensors of a response."""

    number: int
    tensors: Tensors
    last: bool


@dataclass(frozen=True)
class Failed:
    """The stream ends with an error."""

    number: int
    error: RequestError


def engine_of(front: str) -> str:
    """The model that owns the engine of a streaming front. Raises ConfigError when the front's name names none."""
    engine = front.removesuffix(_FRONT_SUFFIX)
    if engine in (front, ""):
        raise ConfigError(f"{front} is a streaming front: it must be named as the model that it fronts, with _stream")
    return engine


def socket_path(model: str, folder: str) -> Path:
    """Where the engine of a model listens. Raises ConfigError when the folder is not private."""
    status = Path(folder).stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(f"{FOLDER_VARIABLE} names {folder}, which others may enter: it must be yours alone, mode 700")
    return Path(folder) / f"{model}.sock"


class Outlet:
    """Where the answer to one stream goes, on the engine's side. Any thread may use it."""

    def __init__(self, number: int, send: Callable[[Any], None]) -> None:
        self._number, self._send = number, send

    def part(self, tensors: Tensors, *, last: bool) -> None:
        """Sends a chunk."""
        self._send(Part(self._number, tensors, last))

    def fail(self, error: RequestError) -> None:
        """Ends the stream with an error."""
        self._send(Failed(self._number, error))


class Host:
    """The engine's side. Listens from the start, so that a front can wait for it, and serves after `serve`.

    `start(tensors, outlet)` begins a stream and returns what ends it when its client is gone; both are called on the
    socket's thread. What `start` raises ends the stream.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._peer: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def serve(self, start: Callable[[Tensors, Outlet], Callable[[], None]]) -> None:
        """Takes streams from now on."""
        self._thread = threading.Thread(target=self._run, args=(start,), name="socket", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the connection and the thread."""
        for end in (self._socket, self._peer):
            if end is not None:
                with contextlib.suppress(OSError):  # the front has ended the connection already
                    end.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _run(self, start: Callable[[Tensors, Outlet], Callable[[], None]]) -> None:
        while True:
            try:
                self._peer, _ = self._socket.accept()
            except OSError:  # closed
                return
            with self._peer:
                _Session(self._peer, start).run()


class _Session:
    """One connection of a front."""

    def __init__(self, peer: socket.socket, start: Callable[[Tensors, Outlet], Callable[[], None]]) -> None:
        self._channel = _Channel(peer)
        self._start = start
        self._lock = threading.Lock()
        self._give_up: dict[int, Callable[[], None]] = {}  # of streams that have not ended; guarded by the lock

    def run(self) -> None:
        """Serves until the front is gone."""
        self._channel.send(Ready())
        while (message := self._channel.receive()) is not None:
            if isinstance(message, Open):
                self._open(message)
            else:
                self._call_off(message.number)
        for number in list(self._give_up):
            self._call_off(number)

    def _open(self, message: Open) -> None:
        number = message.number
        with self._lock:
            self._give_up[number] = _nothing
        try:
            give_up = self._start(message.tensors, Outlet(number, self._answer))
        except RequestError as error:
            self._answer(Failed(number, error))
            return
        with self._lock:
            if number in self._give_up:  # not answered to the end meanwhile
                self._give_up[number] = give_up

    def _call_off(self, number: int) -> None:
        with self._lock:
            give_up = self._give_up.get(number, _nothing)
        give_up()

    def _answer(self, message: Part | Failed) -> None:
        if isinstance(message, Failed) or message.last:
            with self._lock:
                self._give_up.pop(message.number, None)
        self._channel.send(message)


def _nothing() -> None:
    """What gives up a stream that has ended."""


Receive = Callable[[Part | Failed], None]
"""Called for every message of one stream, on the thread that reads the socket."""


class Link:
    """The front's side."""

    def __init__(self, path: Path, *, wait_seconds: float = 60.0, report: Callable[[str], None]) -> None:
        """Connects and waits until the engine takes streams.

        Raises EngineFailed when nobody listens within `wait_seconds`, or when whoever listened ended. The models of a
        server load in any order, and the engine's takes minutes; but it listens at once.
        """
        self._socket = _connect(path, wait_seconds, report)
        self._channel = _Channel(self._socket)
        report("connected, waiting for the engine to be ready")
        if self._channel.receive() is None:
            self._socket.close()
            raise EngineFailed(f"the model that owns the engine ended before it was ready ({path})")
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._streams: dict[int, Receive] | None = {}  # guarded by the lock; None when the engine is gone
        self._thread = threading.Thread(target=self._run, name="socket", daemon=True)
        self._thread.start()

    def open(self, tensors: Tensors, receive: Receive) -> int:
        """Begins a stream. Returns its number, for `give_up`. Raises EngineFailed when the engine is gone."""
        number = next(self._numbers)
        with self._lock:
            if self._streams is None:
                raise _gone()
            self._streams[number] = receive
        self._channel.send(Open(number, tensors))
        return number

    def give_up(self, number: int) -> None:
        """Ends a stream, if it has not ended; it is answered with an error."""
        self._channel.send(GiveUp(number))

    def close(self) -> None:
        """Ends the connection; streams that are open fail."""
        with contextlib.suppress(OSError):  # the engine has ended it already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while (message := self._channel.receive()) is not None:
            ends = isinstance(message, Failed) or message.last
            with self._lock:
                assert self._streams is not None, "only this thread ends them all"
                receive = self._streams.pop(message.number) if ends else self._streams[message.number]
            receive(message)
        with self._lock:
            streams, self._streams = self._streams or {}, None
        for number, receive in streams.items():
            receive(Failed(number, _gone()))


def _gone() -> EngineFailed:
    return EngineFailed("the process of the engine has ended")


def _connect(path: Path, wait_seconds: float, report: Callable[[str], None]) -> socket.socket:
    report(f"waiting for the model that owns the engine at {path}")
    limit = time.monotonic() + wait_seconds
    while True:
        end = socket.socket(socket.AF_UNIX)
        try:
            end.connect(str(path))
            return end
        except (FileNotFoundError, ConnectionRefusedError):
            end.close()
            if time.monotonic() > limit:
                raise EngineFailed(f"nobody listens at {path} after {wait_seconds:g} s: is the model loaded?") from None
        time.sleep(_RETRY_SECONDS)  # nothing announces a file; only while the server starts


class _Channel:
    """Messages over a connected socket: any thread sends, one receives. A lost connection is told to the receiver."""

    def __init__(self, end: socket.socket) -> None:
        self._connection = Connection(os.dup(end.fileno()))  # its own, so that `shutdown` wakes the receiver
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        with self._sending, contextlib.suppress(OSError):  # the receiver reads the end of the connection
            self._connection.send(message)

    def receive(self) -> Any:
        """The next message, None at the end of the connection."""
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            with self._sending:
                self._connection.close()
            return None
