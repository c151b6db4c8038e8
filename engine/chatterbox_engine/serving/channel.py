"""A connected local socket that carries the messages of `codec`, and the check who is at its other end. No torch."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from multiprocessing.connection import Connection

from chatterbox_engine.serving.codec import Message, WrongMessage, decode, encode

LARGEST = 1 << 30
"""Maximum bytes of a message; every valid request is smaller (`limits`)."""

_CREDENTIALS = struct.Struct("3i")  # Linux's ucred: pid, uid, gid

_log = logging.getLogger(__name__)


def is_same_user(end: socket.socket) -> bool:
    """Whether the peer process runs as this process's user."""
    size = _CREDENTIALS.size
    _, user, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(user == os.getuid())


class Channel:
    """Messages over a connected socket: any thread sends, one receives. Only `receive` reports a lost connection."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._connection = Connection(os.dup(end.fileno()))  # its own, so that `shutdown` wakes the receiver
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Sends a message."""
        self.send_bytes(encode(message))

    def send_bytes(self, data: bytes) -> None:
        """Sends an encoded message."""
        with self._sending, contextlib.suppress(OSError):  # the receiver reads the end of the connection
            self._connection.send_bytes(data)

    def receive(self) -> Message | None:
        """The next message; None at the end of the connection or after an invalid message."""
        try:
            return decode(self._connection.recv_bytes(LARGEST))
        except (EOFError, OSError):
            return None
        except WrongMessage as error:
            _log.warning("the connection ends: %s", error)
            return None

    def close(self) -> None:
        """Closes the connection. Called by the receiver."""
        with contextlib.suppress(OSError):  # it has ended
            self._end.shutdown(socket.SHUT_RDWR)  # unblocks a sender whose peer does not read
        with self._sending:
            self._connection.close()
