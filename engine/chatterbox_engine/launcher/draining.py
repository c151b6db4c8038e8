"""How a server is emptied before it stops: see `chatterbox_engine.serving.supervision` for the models' side."""

from __future__ import annotations

import contextlib
import http.client
import json
import selectors
import socket
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path

from chatterbox_engine.serving.supervision import CONTROL, DRAINED, short_path

REPOSITORY = "stopping"
"""Folder of a model repository that is empty until the server stops."""

_MODEL = "server_is_stopping"
_SECONDS = 5.0
"""For an answer of the server about its health."""


class Models:
    """The models' processes that take part, once they have called."""

    def __init__(self, folder: Path) -> None:
        """Listens in the launcher's private folder."""
        self._socket = socket.socket(socket.AF_UNIX)
        with short_path(folder / CONTROL) as address:
            self._socket.bind(address)
        self._socket.listen()
        self._socket.setblocking(False)
        self._busy: set[socket.socket] = set()
        self._idle: set[socket.socket] = set()
        self._drained: Callable[[], None] | None = None

    def attend(self, selector: selectors.BaseSelector) -> None:
        """Reads what they send whenever the selector's owner calls its keys' data."""
        self._selector = selector
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def drain(self, seconds: float, drained: Callable[[], None]) -> None:
        """Tells them to finish what is under way within `seconds`. `drained` is called once all of them have, or have
        ended; before this returns when there is none."""
        self._accept()
        self._drained = drained
        for line in self._busy:
            with contextlib.suppress(OSError):  # it has ended, which is read next
                line.sendall(f"{seconds}\n".encode())
        self._report()

    def close(self) -> None:
        """Ends the lines."""
        for line in (self._socket, *self._busy, *self._idle):
            line.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                line, _ = self._socket.accept()
                self._busy.add(line)
                self._selector.register(line, selectors.EVENT_READ, partial(self._read, line))

    def _read(self, line: socket.socket) -> None:
        try:
            words = line.recv(64)
        except ConnectionResetError:
            words = b""
        self._busy.discard(line)
        if words == DRAINED:
            self._idle.add(line)
        else:  # the process has ended, or its model is unloaded
            self._idle.discard(line)
            self._selector.unregister(line)
            line.close()
        self._report()

    def _report(self) -> None:
        if self._drained is not None and not self._busy:
            drained, self._drained = self._drained, None
            drained()


def answers_ready(url: str) -> bool:
    """Whether the server at `host:port` says that it is ready."""
    try:
        return _request(url, "GET", "/v2/health/ready") == HTTPStatus.OK
    except OSError:
        return False


def withdraw(url: str, folder: Path, headers: Mapping[str, str]) -> bool:
    """Makes a server that goes on serving say that it is not ready; returns whether it does. The headers hold its keys.

    Triton has no switch for that. With --strict-readiness it is not ready when some model is not, and a model that
    cannot be loaded is such a one: it is made in the server's second, empty repository, without any version.
    """
    model = folder / REPOSITORY / _MODEL
    model.mkdir()
    (model / "config.pbtxt").write_text('backend: "python"\n', encoding="utf-8")
    with contextlib.suppress(OSError):  # it stops already
        _request(url, "POST", f"/v2/repository/models/{_MODEL}/load", json.dumps({}), headers)
    return not answers_ready(url)


def _request(
    url: str, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None
) -> int:
    connection = http.client.HTTPConnection(url, timeout=_SECONDS)
    try:
        connection.request(method, path, body, dict(headers or {}))
        return connection.getresponse().status
    finally:
        connection.close()
