"""The local socket between the model that owns the engine and the streaming front, two processes of one server.

Why not BLS: calling a decoupled model from a Python model deadlocks under load. The socket is in a private folder,
and each end checks with the kernel that its peer runs as the same user. A secret would add nothing: that user can read
this process's memory. One connection, with one thread at each end that reads it; messages as in `codec`:

    front                       engine
    Open(number, tensors)   ->
    Cancel(number)          ->
                            <-  Ready(instances), Load(utterances, seen)
                            <-  Part(number, tensors, last)
                            <-  Failed(number, error)

A stream ends with its last part or with an error. When either process dies, the other one reads the end of the
connection: the front then fails its streams, and the engine cancels them. Data that is not a message of this protocol
ends the connection too. An unloaded engine may be loaded again, so the front reconnects. Imports no torch, because the
front uses it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from chatterbox_engine.errors import ConfigError, EngineFailed, InvalidRequest, RequestError, Unavailable
from chatterbox_engine.serving.channel import LARGEST, Channel, is_same_user
from chatterbox_engine.serving.codec import (
    Cancel,
    Failed,
    Load,
    Open,
    Part,
    Ready,
    Tensors,
    encode,
)
from chatterbox_engine.serving.supervision import short_path

FOLDER_VARIABLE = "CHATTERBOX_SOCKETS"
"""Path of this server's private folder, which only its user may enter. The launcher creates it."""

_FRONT_SUFFIX = "_stream"  # the client adds it too
_RETRY_SECONDS = 0.1

_log = logging.getLogger(__name__)


def engine_of(front: str) -> str:
    """The model that owns the engine of a streaming front. Raises ConfigError when the front's name names none."""
    engine = front.removesuffix(_FRONT_SUFFIX)
    if engine in (front, ""):
        raise ConfigError(f"{front} is a streaming front: it must be named as the model that it fronts, with _stream")
    return engine


def socket_path(model: str, folder: str, index: int = 0) -> Path:
    """Where the engine of a model's instance listens. Raises ConfigError when the folder is not private."""
    status = Path(folder).stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(f"{FOLDER_VARIABLE} names {folder}, which others may enter: it must be yours alone, mode 700")
    return Path(folder) / f"{model}.{index}.sock"


class Outlet:
    """Sends the responses of one stream from the engine's side. Thread-safe."""

    def __init__(self, number: int, send: Callable[[Part | Failed], None]) -> None:
        self._number, self._send = number, send

    def part(self, tensors: Tensors, *, last: bool) -> None:
        """Sends a chunk."""
        self._send(Part(self._number, tensors, last))

    def fail(self, error: RequestError) -> None:
        """Ends the stream with an error."""
        self._send(Failed(self._number, error))


Start = Callable[[Tensors, Outlet], Callable[[], None]]


class Host:
    """The engine's side. Listens from the start, so that a front can wait for it, and serves after `serve`.

    `start(tensors, outlet)` begins a stream and returns the function that cancels it; both are called on the socket's
    thread. An error that `start` raises ends the stream. `load()` tells the utterances of the engine's requests; it is
    called on any thread that calls `announce`.
    """

    def __init__(self, path: Path, instances: int = 1) -> None:
        """instances: engines of the model, among which the front chooses by their load."""
        path.unlink(missing_ok=True)
        self._path = path
        self._instances = instances
        self._session: _Session | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        with short_path(path) as address:
            self._socket.bind(address)
        self._file = path.stat().st_ino
        self._socket.listen()
        self._peer: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def serve(self, start: Start, load: Callable[[], int]) -> None:
        """Starts to accept streams."""
        self._thread = threading.Thread(target=self._run, args=(start, load), name="socket", daemon=True)
        self._thread.start()

    def announce(self) -> None:
        """Tells the front the engine's load, where there are other engines."""
        session = self._session
        if session is not None:
            session.announce()

    def close(self) -> None:
        """Ends the connection and the thread."""
        for end in (self._socket, self._peer):
            if end is not None:
                with contextlib.suppress(OSError):  # the front has ended the connection already
                    end.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._file:  # not the socket of an engine loaded to replace this one
                self._path.unlink()

    def _run(self, start: Start, load: Callable[[], int]) -> None:
        while True:
            try:
                self._peer, _ = self._socket.accept()
            except OSError:  # closed
                return
            with self._peer:
                if not is_same_user(self._peer):
                    _log.warning("a connection of another user was refused")
                    continue
                self._session = _Session(self._peer, start, load, self._instances)
                self._session.run()
                self._session = None


class _Session:
    """One connection of a front."""

    def __init__(self, peer: socket.socket, start: Start, load: Callable[[], int], instances: int) -> None:
        self._channel = Channel(peer)
        self._start = start
        self._load = load
        self._instances = instances
        self._seen = 0  # number of the last stream that `start` has begun or refused
        self._announcing = threading.Lock()  # else an older load could be sent after a newer one
        self._greeted = False  # guarded by that lock: the first message is Ready
        self._lock = threading.Lock()
        self._cancellations: dict[int, Callable[[], None]] = {}  # of streams that have not ended; guarded by the lock

    def run(self) -> None:
        """Serves until the front disconnects."""
        with self._announcing:
            self._channel.send(Ready(self._instances))
            self._greeted = True
        self.announce()
        while isinstance(message := self._channel.receive(), Open | Cancel):
            if isinstance(message, Open):
                self._open(message)
                self._seen = message.number
                self.announce()
            else:
                self._cancel(message.number)
        self._channel.close()
        for number in list(self._cancellations):
            self._cancel(number)

    def _open(self, message: Open) -> None:
        number = message.number
        with self._lock:
            self._cancellations[number] = _nothing
        try:
            cancel = self._start(message.tensors, Outlet(number, self._answer))
        except RequestError as error:
            self._answer(Failed(number, error))
            return
        with self._lock:
            if number in self._cancellations:  # it may have ended meanwhile
                self._cancellations[number] = cancel

    def announce(self) -> None:
        """See `Host`."""
        with self._announcing:
            if self._instances > 1 and self._greeted:
                self._channel.send(Load(self._load(), self._seen))

    def _cancel(self, number: int) -> None:
        with self._lock:
            cancel = self._cancellations.get(number, _nothing)
        cancel()

    def _answer(self, message: Part | Failed) -> None:
        if isinstance(message, Failed) or message.last:
            with self._lock:
                self._cancellations.pop(message.number, None)
        self._channel.send(message)


def _nothing() -> None:
    """Cancels a stream that has ended: a no-op."""


Receive = Callable[[Part | Failed], None]
"""Called with every message of one stream, on the thread that reads the socket."""


class Link:
    """The front's side."""

    def __init__(self, path: Path, *, wait_seconds: float = 60.0, report: Callable[[str], None]) -> None:
        """Connects and waits until the engine accepts streams.

        Raises EngineFailed when no engine listens within `wait_seconds`, or when it ends before it accepts streams. The
        models of a server load in any order; the engine's takes minutes to load but listens at once.
        """
        self._path = path
        self._closed = threading.Event()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._streams: dict[int, Receive] | None = None  # guarded by the lock; None while there is no engine
        self._drained: Callable[[], None] | None = None  # guarded by the lock
        self._load = Load(0, 0)  # guarded by the lock
        self.instances = 1
        """Engines of the model."""
        report(f"waiting for the model that owns the engine at {path}")
        limit = time.monotonic() + wait_seconds
        while not self._connect():
            if time.monotonic() > limit:
                raise EngineFailed(f"nobody listens at {path} after {wait_seconds:g} s: is the model loaded?")
            time.sleep(_RETRY_SECONDS)  # nothing announces a file; only while the server starts
        report("connected, waiting for the engine to be ready")
        if not self._await_engine():
            raise EngineFailed(f"the model that owns the engine ended before it was ready ({path})")
        self._thread = threading.Thread(target=self._run, name="socket", daemon=True)
        self._thread.start()

    @property
    def utterances(self) -> int | None:
        """Those of the engine, where it is one of several, and the streams that it has not counted; None while there is
        no engine."""
        with self._lock:
            if self._streams is None:
                return None
            return self._load.utterances + sum(number > self._load.seen for number in self._streams)

    def open(self, tensors: Tensors, receive: Receive) -> int:
        """Begins a stream. Returns its number, for `cancel`.

        Raises Unavailable when there is no engine, and InvalidRequest for a request that is too large.
        """
        number = next(self._numbers)
        data = encode(Open(number, tensors))
        if len(data) > LARGEST:
            raise InvalidRequest(f"the request has {len(data) / 1e6:.0f} MB; at most {LARGEST / 1e6:.0f} MB are taken")
        with self._lock:
            if self._streams is None:
                raise Unavailable("the model that owns the engine is not loaded")
            self._streams[number] = receive
        self._channel.send_bytes(data)
        return number

    def cancel(self, number: int) -> None:
        """Cancels a stream that has not ended; it then ends with an error."""
        self._channel.send(Cancel(number))

    def drain(self, _seconds: float, drained: Callable[[], None]) -> None:
        """Calls `drained` once no stream is open. The engine ends all streams in time and refuses new ones."""
        with self._lock:
            self._drained = drained
            self._report_drained()

    def close(self) -> None:
        """Closes the connection; open streams fail."""
        self._closed.set()
        with self._lock, contextlib.suppress(OSError):  # the engine has ended it already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _connect(self) -> bool:
        end = socket.socket(socket.AF_UNIX)
        try:
            with short_path(self._path) as address:
                end.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            end.close()
            return False
        if not is_same_user(end):
            end.close()
            raise EngineFailed(f"another user listens at {self._path}")
        self._channel = Channel(end)
        with self._lock:
            self._socket = end
        return True

    def _reconnect(self) -> bool:
        try:
            return self._connect() and self._await_engine()
        except EngineFailed as error:
            _log.warning("%s", error)
            return False

    def _await_engine(self) -> bool:
        """Waits until the engine accepts streams; False if the engine or this link has ended."""
        if self._closed.is_set() or not isinstance(message := self._channel.receive(), Ready):
            self._channel.close()
            self._socket.close()
            return False
        with self._lock:
            self._streams, self._load, self.instances = {}, Load(0, 0), message.instances
        return True

    def _run(self) -> None:
        while not self._closed.is_set():
            self._listen()
            # a reloaded engine listens at the same path, without notification
            while not self._closed.wait(_RETRY_SECONDS) and not self._reconnect():
                pass

    def _listen(self) -> None:
        """Receives messages until the engine disconnects."""
        while isinstance(message := self._channel.receive(), Part | Failed | Load):
            if isinstance(message, Load):
                with self._lock:
                    self._load = message
                continue
            ends = isinstance(message, Failed) or message.last
            with self._lock:
                assert self._streams is not None, "only this thread ends them all"
                receive = self._streams.pop(message.number, None) if ends else self._streams.get(message.number)
            if receive is None:
                _log.warning("the engine answered a stream that is not open")
                break
            receive(message)
            with self._lock:
                self._report_drained()
        self._channel.close()
        with self._lock:
            streams, self._streams = self._streams or {}, None
        for number, receive in streams.items():
            receive(Failed(number, _gone()))
        with self._lock:
            self._report_drained()
            self._socket.close()

    def _report_drained(self) -> None:
        """Called with the lock held."""
        if not self._streams and self._drained is not None:
            drained, self._drained = self._drained, None
            drained()


def _gone() -> EngineFailed:
    return EngineFailed("the process of the engine has ended")
