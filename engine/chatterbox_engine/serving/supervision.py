"""What a model's process owes the processes above it: it ends with its server, and drains when the launcher says so.

    launcher ── guard ── tritonserver ── the process of each model
        └──────── a socket in the private folder ───────┘

A process of Triton's Python backend notices the end of its server by itself only while nothing is under way: otherwise
it waits for answers from a server that is gone, for ever. So every model calls `supervise`.

Over the socket the launcher sends one line, the seconds that requests under way have, and the model answers `drained`
when it holds none any more. Started without the launcher there is no socket. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

CONTROL = "launcher.sock"
"""The launcher's socket in its private folder."""

DRAINED = b"drained\n"

Drain = Callable[[float, Callable[[], None]], None]
"""Takes the seconds that requests under way have, and what to call once there are none. Must not block."""


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Another name of a socket, for `bind` and `connect`: an address has 108 bytes, which a long TMPDIR exceeds.

    Raises FileNotFoundError when its folder does not exist.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def supervise(folder: str | None = None, drain: Drain | None = None) -> None:
    """Watches the server from a thread of its own, for as long as this process lives.

    folder: the launcher's; drain: what to do when the launcher asks for it.
    """
    selector = selectors.DefaultSelector()
    selector.register(os.pidfd_open(os.getppid()), selectors.EVENT_READ, _end)
    if drain is not None and folder is not None and (line := _connect(Path(folder) / CONTROL)) is not None:
        selector.register(line, selectors.EVENT_READ, lambda: _obey(line, drain, selector))
    threading.Thread(target=_run, args=(selector,), name="supervision", daemon=True).start()


def _run(selector: selectors.BaseSelector) -> None:
    while True:
        for key, _ in selector.select():
            key.data()


def _end() -> None:
    os._exit(1)  # not sys.exit: what runs at a regular end would wait for the server


def _connect(path: Path) -> socket.socket | None:
    line = socket.socket(socket.AF_UNIX)
    try:
        with short_path(path) as address:
            line.connect(address)
    except FileNotFoundError:  # no launcher
        line.close()
        return None
    return line


def _obey(line: socket.socket, drain: Drain, selector: selectors.BaseSelector) -> None:
    try:
        order = line.recv(64)  # one line, sent at once
    except ConnectionResetError:
        order = b""
    if not order:  # the launcher is gone, and the guard ends the server
        selector.unregister(line)
        line.close()
        return

    def answer() -> None:
        with contextlib.suppress(OSError):  # the launcher has gone meanwhile
            line.sendall(DRAINED)

    drain(float(order), answer)
