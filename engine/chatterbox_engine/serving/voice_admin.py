"""The contract of the model `chatterbox_voices`: tensors to a change of the voice store, and its result back. No torch.

Adding a voice stores its clip and computes nothing: the first request that speaks with it does, or the next start.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from chatterbox_engine.config import Config
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.voices.clips import ClipLimits, clip_bytes, read_clip
from chatterbox_engine.voices.store import VoiceStore

Tensors = Mapping[str, npt.NDArray[Any]]

INPUTS = ("action", "voice", "audio")
OUTPUTS = ("result",)

BUILT_IN = "default"
"""Always the checkpoint's own voice, so no name for a stored one."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class VoiceAdmin:
    """Carries out requests one after the other."""

    def __init__(self, store: VoiceStore, limits: ClipLimits) -> None:
        self._store = store
        self._limits = limits
        self._actions: Mapping[str, Callable[[Tensors], Any]] = {
            "list": self._list,
            "add": self._add,
            "delete": self._delete,
            "get": self._get,
        }

    @classmethod
    def of(cls, config: Config) -> VoiceAdmin:
        """With the store and limits of a configuration. Raises ConfigError."""
        limits = ClipLimits(config.max_clip_mb << 20, config.max_clip_seconds)
        return cls(VoiceStore(config.voice_store), limits)

    def handle(self, tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
        """The answer to one request: `result`, [1, 1], is JSON.

        Raises InvalidRequest, NotFound, or Unavailable when the store is gone.
        """
        for name in tensors:
            if name not in INPUTS:
                raise InvalidRequest(f"unknown input {name!r}; the inputs are {', '.join(INPUTS)}")
        action = _text(tensors, "action")
        if action not in self._actions:
            raise InvalidRequest(f"action is {action!r}; it must be one of {', '.join(self._actions)}")
        result = json.dumps(self._actions[action](tensors)).encode()
        return {"result": np.array([[result]], dtype=np.object_)}

    def close(self) -> None:
        """Ends the connections."""
        self._store.close()

    def _list(self, _tensors: Tensors) -> Any:
        return [dataclasses.asdict(info) for info in self._store.list()]

    def _add(self, tensors: Tensors) -> Any:
        name, audio = _text(tensors, "voice"), clip_bytes(_bytes(tensors, "audio"))
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"voice is {name!r}; a name has 1 to 64 letters, digits, dots, dashes or underscores")
        if name == BUILT_IN:
            raise InvalidRequest(f"voice is {name!r}, which is the name of the checkpoint's own voice")
        read_clip(audio, self._limits)
        self._store.add(name, audio)
        return dataclasses.asdict(self._store.get(name))

    def _delete(self, tensors: Tensors) -> Any:
        name = _text(tensors, "voice")
        self._store.delete(name)
        return {"voice": name}

    def _get(self, tensors: Tensors) -> Any:
        return dataclasses.asdict(self._store.get(_text(tensors, "voice")))


def _bytes(tensors: Tensors, name: str) -> bytes:
    if name not in tensors:
        raise InvalidRequest(f"the input {name!r} is missing")
    value = tensors[name]
    if value.size != 1:
        raise InvalidRequest(f"{name} must hold one value, it has the shape {list(value.shape)}")
    item = value.reshape(-1)[0]
    return item if isinstance(item, bytes) else str(item).encode()


def _text(tensors: Tensors, name: str) -> str:
    try:
        return _bytes(tensors, name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not valid UTF-8") from error
