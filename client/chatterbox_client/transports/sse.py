"""Triton's `generate_stream`: a request's tensors as JSON, and its server-sent events back to tensors.

Audio travels as 16-bit samples in base64, an eighth of what it would take as JSON's numbers. The one place beside
`chatterbox_client.request` that knows the contract's tensors.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from chatterbox_client.errors import ChatterboxClientError, InvalidRequest, ServerError
from chatterbox_client.request import Tensors
from chatterbox_client.transports import convert

HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream"}

_FULL_SCALE = 32_767
_TEXTS = ("stats", "words")
_INTEGERS = {"sample_rate": np.int32, "speech_tokens": np.int32, "chunk_index": np.int32, "is_last": np.bool_}


def path(model: str) -> str:
    """Where a model's streams are asked for."""
    return f"/v2/models/{quote(model, safe='')}/generate_stream"


def body(tensors: Tensors, request_id: str = "") -> bytes:
    """A request's body. Raises InvalidRequest for a text that is not UTF-8."""
    return json.dumps(
        {name: _value(name, tensor.item()) for name, tensor in tensors.items()}
        | {"format": "s16"}
        | ({"id": request_id} if request_id else {})
    ).encode()


def refusal(status: int, content: bytes) -> ChatterboxClientError:
    """The error for an answer that is not a stream."""
    try:
        message = str(json.loads(content.strip().removeprefix(b"data:"))["error"])  # Triton sends an event here too
    except (ValueError, KeyError, TypeError):
        message = content.decode("utf-8", "replace")[:300] or f"HTTP status {status}"
    return convert.refused(message, str(status))


class Events:
    """Takes an answer's bytes as they come and gives the outputs asked for of the responses that are complete."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self._outputs = outputs
        self._rest = bytearray()
        self.complete = False
        """Whether the last response was among them."""

    def feed(self, data: bytes) -> list[Tensors]:
        """The responses that end in `data`. Raises the typed error of an error among them."""
        searched = len(self._rest)
        self._rest += data
        found: list[Tensors] = []
        while (end := self._rest.find(b"\n", searched)) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            searched = 0
            if line.startswith(b"data:"):
                tensors = _tensors(line.removeprefix(b"data:"))
                self.complete = bool(tensors["is_last"].item())
                found.append({name: tensors[name] for name in self._outputs if name in tensors})
        return found


def _value(name: str, item: Any) -> Any:
    if not isinstance(item, bytes):
        return item
    if name == "reference_audio":
        return base64.b64encode(item).decode()
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not valid UTF-8: {error}") from error


def _tensors(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
        if "error" in event:
            raise convert.refused(str(event["error"]))
        numbers = {name: np.atleast_2d(np.array(event[name], dtype=kind)) for name, kind in _INTEGERS.items()}
        samples = np.frombuffer(base64.b64decode(event["audio_base64"]), dtype="<i2")
        audio = samples.astype(np.float32)[None] / np.float32(_FULL_SCALE)
        texts = {name: np.array([[event[name].encode()]], dtype=np.object_) for name in _TEXTS if name in event}
        return {"audio": audio, **texts, **numbers}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(f"the answer is not of this contract: {error}") from error
