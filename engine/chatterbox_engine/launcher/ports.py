"""TCP ports for a server that will bind them minutes later, when its models are loaded."""

from __future__ import annotations

import contextlib
import socket

from chatterbox_engine.errors import ConfigError


class ReservedPorts:
    """Ports held open by bound sockets that do not listen.

    Nobody else is given such a port, and tritonserver can bind it all the same: like us, it sets SO_REUSEADDR, which
    lets two sockets share an address as long as neither listens.
    """

    def __init__(self, host: str, wanted: list[int]) -> None:
        """Reserves the ports `wanted` on `host`, a free one for each 0. Raises ConfigError when one is taken."""
        self.numbers: list[int] = []
        with contextlib.ExitStack() as sockets:
            for port in wanted:
                self.numbers.append(_reserve(sockets.enter_context(socket.socket(_family(host))), host, port))
            self._sockets = sockets.pop_all()

    def release(self) -> None:
        """Gives the ports back, once the server listens or has ended."""
        self._sockets.close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _reserve(held: socket.socket, host: str, port: int) -> int:
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot use port {port} of {host} ({error.strerror}): choose another, or 0 for a free one"
        ) from error
    number: int = held.getsockname()[1]
    return number
