"""The voices that a server keeps: its model `chatterbox_voices`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatterbox_client.errors import InvalidRequest, ServerError
from chatterbox_client.request import Tensors
from chatterbox_client.transports import AsyncTransport, Transport

MODEL = "chatterbox_voices"

KEY_VARIABLE = "CHATTERBOX_VOICE_KEY"
"""Of the environment: the key that the server wants for changes."""

_OUTPUTS = ("result",)

Clip = str | os.PathLike[str] | bytes
"""A recording (WAV, FLAC, OGG, MP3, M4A, WebM, AIFF, CAF or AMR): its path or its bytes."""


@dataclass(frozen=True)
class VoiceInfo:
    """What a server tells of a voice that it keeps."""

    name: str
    bytes: int
    """Size of the reference clip."""
    content_hash: str
    """SHA-256 of the clip; empty, like the times, for a voice that was written straight into the database and has
    not been used yet."""
    created_at: str
    """ISO 8601, UTC."""
    updated_at: str


@dataclass(frozen=True)
class Lexicons:
    """Words and what is spoken for them, from the server's `CHATTERBOX_LEXICON_FILE`."""

    words: Mapping[str, str]
    """For every voice."""
    voices: Mapping[str, Mapping[str, str]]
    """Of single voices, before those of all."""
    error: str | None
    """Why the file as it is now cannot be used: the entries are those before it."""


class VoiceList:
    """`Client.voices`. Every method raises the errors that `Client.speak` raises.

    client.voices.add("anna", "anna.wav")
    client.speak("Hello.", voice="anna")
    client.voices.delete("anna")

    Changes need the server's key, the client's `voice_key`: without it they raise InvalidRequest.
    """

    def __init__(self, transport: Transport, timeout: float | None, key: str | None = None) -> None:
        self._transport = transport
        self._timeout = timeout
        self._key = _key(key)

    def list(self) -> Sequence[VoiceInfo]:
        """All voices by name, without the built-in one."""
        return [_info(entry) for entry in self._call(_request("list"))]

    def get(self, name: str) -> VoiceInfo:
        """One voice; raises NotFound when there is none."""
        return _info(self._call(_request("get", name)))

    def add(self, name: str, clip: Clip) -> VoiceInfo:
        """Stores a clip under a name (1 to 64 letters, digits, dots, dashes, underscores), in place of an older one."""
        return _info(self._call(_request("add", name, clip, key=self._key)))

    def delete(self, name: str) -> None:
        """Removes a voice; raises NotFound when there is none."""
        self._call(_request("delete", name, key=self._key))

    def lexicons(self) -> Lexicons:
        """The pronunciations of the server and of its voices."""
        return _lexicons(self._call(_request("lexicons")))

    def _call(self, request: Tensors) -> Any:
        return _result(self._transport.infer(MODEL, request, _OUTPUTS, self._timeout))


class AsyncVoiceList:
    """`VoiceList`, awaited."""

    def __init__(self, transport: AsyncTransport, timeout: float | None, key: str | None = None) -> None:
        self._transport = transport
        self._timeout = timeout
        self._key = _key(key)

    async def list(self) -> Sequence[VoiceInfo]:
        """See `VoiceList.list`."""
        return [_info(entry) for entry in await self._call(_request("list"))]

    async def get(self, name: str) -> VoiceInfo:
        """See `VoiceList.get`."""
        return _info(await self._call(_request("get", name)))

    async def add(self, name: str, clip: Clip) -> VoiceInfo:
        """See `VoiceList.add`."""
        return _info(await self._call(_request("add", name, clip, key=self._key)))

    async def delete(self, name: str) -> None:
        """See `VoiceList.delete`."""
        await self._call(_request("delete", name, key=self._key))

    async def lexicons(self) -> Lexicons:
        """See `VoiceList.lexicons`."""
        return _lexicons(await self._call(_request("lexicons")))

    async def _call(self, request: Tensors) -> Any:
        return _result(await self._transport.infer(MODEL, request, _OUTPUTS, self._timeout))


def _key(given: str | None) -> str | None:
    return (os.environ.get(KEY_VARIABLE) if given is None else given) or None


def _request(action: str, name: str | None = None, clip: Clip | None = None, *, key: str | None = None) -> Tensors:
    values: dict[str, Any] = {"action": action.encode()}
    if key is not None:
        values["key"] = key.encode("utf-8", "surrogateescape")
    if name is not None:
        try:
            values["voice"] = name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the voice's name is not valid Unicode: {error}") from error
    if clip is not None:
        values["audio"] = clip if isinstance(clip, bytes) else Path(clip).read_bytes()
    return {key: np.array([[value]], dtype=np.object_) for key, value in values.items()}


def _result(answer: Tensors) -> Any:
    try:
        return json.loads(answer["result"].item())
    except (KeyError, ValueError) as error:
        raise ServerError(f"the answer is not of this contract: {error}") from error


def _info(entry: Any) -> VoiceInfo:
    try:
        return VoiceInfo(
            entry["voice"], entry["bytes"], entry["content_hash"], entry["created_at"], entry["updated_at"]
        )
    except (KeyError, TypeError) as error:
        raise ServerError(f"the answer is not of this contract: {error}") from error


def _lexicons(entry: Any) -> Lexicons:
    try:
        return Lexicons(entry["words"], entry["voices"], entry["error"])
    except (KeyError, TypeError) as error:
        raise ServerError(f"the answer is not of this contract: {error}") from error
