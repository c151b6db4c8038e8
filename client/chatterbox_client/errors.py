"""Every error that the client raises on purpose.

ChatterboxClientError
├── InvalidRequest    the request is wrong: HTTP 400, gRPC INVALID_ARGUMENT, or seen before it was sent
├── NotFound          it names a voice or model that does not exist: 404, NOT_FOUND
├── Unavailable       the server is full or closing, or its deadline has passed: 503, UNAVAILABLE
├── Timeout           no answer within the client's timeout
├── ConnectionFailed  no connection, or the server closed it before it answered
└── ServerError       everything else that a server answers
"""

from __future__ import annotations

from reprlib import Repr

_short = Repr()
_short.maxstring = _short.maxother = 60


def quote(value: object) -> str:
    """The shortened repr of a caller's value, for a message."""
    return _short.repr(value)


class ChatterboxClientError(Exception):
    """Base of all errors of this package.

    `message` is the server's own if it sent one; `status` is the HTTP status ("400") or the gRPC code
    ("INVALID_ARGUMENT") that came with it; None when no server answered or a stream's message has no status.
    """

    def __init__(self, message: str, *, status: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class InvalidRequest(ChatterboxClientError):
    """The request itself is wrong; sending it again will not help."""


def says_nothing(error: Exception) -> bool:
    """Whether a server refused a text because it has nothing to speak: "..." or an emoji, between two sentences."""
    return isinstance(error, InvalidRequest) and "nothing to speak" in error.message


class NotFound(ChatterboxClientError):
    """The request names something that the server does not have."""


class Unavailable(ChatterboxClientError):
    """The server accepts no more requests now; a retry may succeed."""


class Timeout(ChatterboxClientError):
    """The answer did not arrive in time."""


class ConnectionFailed(ChatterboxClientError):
    """No server was reached, or the connection broke before the answer."""


class ServerError(ChatterboxClientError):
    """The server failed, or its response violates the contract."""


_BY_STATUS: dict[str | None, type[ChatterboxClientError]] = {
    "400": InvalidRequest,
    "INVALID_ARGUMENT": InvalidRequest,
    "404": NotFound,
    "NOT_FOUND": NotFound,
    "503": Unavailable,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Timeout,
}


def from_status(message: str, status: str | None) -> ChatterboxClientError:
    """The typed error for a server's message and its status, as both protocols of `tritonclient` spell it."""
    status = status.removeprefix("StatusCode.") if status else None
    return _BY_STATUS.get(status, ServerError)(message, status=status)
