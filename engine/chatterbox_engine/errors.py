"""Every error that the engine raises on purpose.

ChatterboxError
├── ConfigError          a setting is unknown or impossible (at start)
├── CheckpointError      a checkpoint is missing, partial or of other sizes (at start)
└── RequestError         an answer to one request
    ├── InvalidRequest   the request is wrong: 400
    ├── Forbidden        its sender may not do this: 400, since Triton has no 403
    ├── NotFound         it names a voice that does not exist: 404
    ├── Overloaded       the queue is full: 503
    ├── Unavailable      the server is shutting down, or cannot reach a dependency such as the voice store: 503
    ├── DeadlineExceeded it waited or ran longer than allowed: 503
    ├── Cancelled        its client cancelled it or disconnected
    └── EngineFailed     the engine broke while it held the request: 500
"""

from __future__ import annotations

from reprlib import Repr

_short = Repr()
_short.maxstring = _short.maxother = 60


def quote(value: object) -> str:
    """The shortened repr of a client's value, for a message; gRPC carries at most 8 kB of message."""
    return _short.repr(value)


class ChatterboxError(Exception):
    """Base of all errors of this package."""


class ConfigError(ChatterboxError):
    """A setting is unknown or impossible."""


class CheckpointError(ChatterboxError):
    """A checkpoint is missing, incomplete, or its sizes differ from its configuration."""


class RequestError(ChatterboxError):
    """One request cannot be answered with audio."""


class InvalidRequest(RequestError):
    """The request itself is wrong."""


class Forbidden(RequestError):
    """The client is not allowed to make this request."""


class NotFound(RequestError):
    """The request names something that does not exist."""


class Overloaded(RequestError):
    """The queue is full."""


class Unavailable(RequestError):
    """The server is shutting down, or something that the request needs cannot be reached now."""


class DeadlineExceeded(RequestError):
    """The request waited or ran longer than it may."""


class Cancelled(RequestError):
    """The client cancelled the request or disconnected."""


class EngineFailed(RequestError):
    """The engine failed while it held the request."""
