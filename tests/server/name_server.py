"""A name server for tests: one name, whose addresses change while it runs."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from types import TracebackType

NAME = "servers.test"

_ANSWER, _REFUSED = 0x8580, 0x8583  # authoritative and recursive; the second says that there is no such name
_A, _IN = 1, 1
_TTL = 1


class NameServer:
    """Answers over UDP between `__enter__` and `__exit__`, as a headless Service's name is answered."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        """IPv4 addresses of NAME; replaced, never changed."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="name server")

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while query := self._socket.recvfrom(512):
            packet, caller = query
            if not packet:
                return
            self._socket.sendto(self.answer(packet), caller)

    def answer(self, query: bytes) -> bytes:
        """The answer to a query of one question."""
        end = query.index(b"\0", 12) + 5  # of the question: name, type, class
        question = query[12:end]
        known = question[:-4] == _labels(NAME)
        wanted = struct.unpack("!H", question[-4:-2])[0]
        addresses = self.addresses if known and wanted == _A else []
        head = query[:2] + struct.pack("!5H", _ANSWER if known else _REFUSED, 1, len(addresses), 0, 0)
        records = [
            struct.pack("!3HLH", 0xC00C, _A, _IN, _TTL, 4) + ipaddress.IPv4Address(address).packed
            for address in addresses
        ]
        return head + question + b"".join(records)


def _labels(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
