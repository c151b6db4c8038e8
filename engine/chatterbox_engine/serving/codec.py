"""The messages between engine and front as bytes, and back.

MessagePack, whose decoder returns only numbers, strings, bytes, lists and maps and runs no code. The result is checked
against the six messages below before any object is built from it. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from chatterbox_engine import errors
from chatterbox_engine.errors import RequestError

Tensors = Mapping[str, npt.NDArray[Any]]

_KINDS = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
}
"""The data types of Triton's tensors. The remaining one, byte strings, is numpy's `object`."""

_BYTES = "bytes"

_ERRORS: dict[str, type[RequestError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RequestError)
}


class WrongMessage(Exception):
    """Bytes that are not a message of this protocol."""


@dataclass(frozen=True)
class Open:
    """A stream begins. `tensors` are the request's inputs, not yet checked."""

    number: int
    tensors: Tensors


@dataclass(frozen=True)
class Cancel:
    """The stream's client cancelled or disconnected."""

    number: int


@dataclass(frozen=True)
class Ready:
    """The engine accepts streams: its first message."""

    instances: int = 1
    """Engines of the model, each with a socket of its own."""


@dataclass(frozen=True)
class Load:
    """The work of an engine that is not the only one of its model, whenever it changes."""

    utterances: int
    """Of all requests that it has not answered."""
    seen: int
    """Number of the last stream that is counted."""


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


Message = Open | Cancel | Ready | Load | Part | Failed


def encode(message: Message) -> bytes:
    """Encodes a message. Raises TypeError for a tensor of a data type that Triton does not support."""
    return bytes(msgpack.packb([type(message).__name__, *_fields(message)]))


def decode(data: bytes) -> Message:
    """Decodes a message; its arrays are copies. Raises WrongMessage for all other bytes."""
    try:
        kind, *fields = msgpack.unpackb(data)
        return _build(kind, fields)
    except WrongMessage:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise WrongMessage(f"{len(data)} bytes that are no message: {type(error).__name__}") from error


def _fields(message: Message) -> list[Any]:
    match message:
        case Ready(instances):
            return [instances]
        case Load(utterances, seen):
            return [utterances, seen]
        case Cancel(number):
            return [number]
        case Open(number, tensors):
            return [number, _pack_tensors(tensors)]
        case Part(number, tensors, last):
            return [number, _pack_tensors(tensors), last]
        case Failed(number, error):
            return [number, type(error).__name__, str(error)]


def _build(kind: Any, fields: list[Any]) -> Message:
    match [kind, *fields]:
        case ["Ready", int(instances)]:
            return Ready(instances)
        case ["Load", int(utterances), int(seen)]:
            return Load(utterances, seen)
        case ["Cancel", int(number)]:
            return Cancel(number)
        case ["Open", int(number), dict(tensors)]:
            return Open(number, _unpack_tensors(tensors))
        case ["Part", int(number), dict(tensors), bool(last)]:
            return Part(number, _unpack_tensors(tensors), last)
        case ["Failed", int(number), str(name), str(text)] if name in _ERRORS:
            return Failed(number, _ERRORS[name](text))
    raise WrongMessage("a message of no known kind")


def _pack_tensors(tensors: Tensors) -> dict[str, Any]:
    return {name: _pack(array) for name, array in tensors.items()}


def _pack(array: npt.NDArray[Any]) -> list[Any]:
    if array.dtype == np.object_:
        items = list(array.reshape(-1))
        if not all(isinstance(item, bytes) for item in items):
            raise TypeError("a tensor of objects may hold bytes alone")
        return [_BYTES, array.shape, items]
    kind = _KINDS.get(array.dtype.name)
    if kind is None:
        raise TypeError(f"no tensor of Triton has the type {array.dtype}")
    return [array.dtype.name, array.shape, array.astype(kind, copy=False).tobytes()]


def _unpack_tensors(tensors: dict[Any, Any]) -> dict[str, npt.NDArray[Any]]:
    return {_name(name): _unpack(packed) for name, packed in tensors.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise WrongMessage("a tensor without a name")
    return name


def _unpack(packed: Any) -> npt.NDArray[Any]:
    match packed:
        case [str(name), list(shape), bytes(data)] if name in _KINDS and _are_sizes(shape):
            return np.frombuffer(data, _KINDS[name]).reshape(shape).copy()
        case [str(name), list(shape), list(items)] if name == _BYTES and _are_sizes(shape):
            if math.prod(shape) == len(items) and all(isinstance(item, bytes) for item in items):
                return _of_objects(items).reshape(shape)
    raise WrongMessage("a tensor of no known kind")


def _of_objects(items: list[bytes]) -> npt.NDArray[Any]:
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array


def _are_sizes(shape: list[Any]) -> bool:
    return all(type(size) is int and size >= 0 for size in shape)
