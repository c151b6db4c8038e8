"""The contract of the model `chatterbox_voices`: tensors to a change of the voice store, and its result back. No torch.

Anybody may list and get voices, and list the server's lexicons. Adding and deleting need a key, and without one in the
settings nobody may: whatever reaches the server's port could send such a request, a page in a browser on this machine
too.

Adding a voice stores its clip and computes nothing: the engines of this store notice it, and compute it in the
background (`voice_watch`).
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from chatterbox_engine.config import Config
from chatterbox_engine.errors import Forbidden, InvalidRequest, quote
from chatterbox_engine.text.lexicon_file import LexiconFile
from chatterbox_engine.voices.clips import ClipLimits, clip_bytes, read_clip
from chatterbox_engine.voices.store import VoiceStore

Tensors = Mapping[str, npt.NDArray[Any]]

INPUTS = ("action", "voice", "audio", "key")
OUTPUTS = ("result",)

CHANGES = ("add", "delete")
"""The actions that need a key."""

BUILT_IN = "default"
"""Always the checkpoint's own voice, so no name for a stored one."""

_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,64}")
"""Dots alone are no name: in a URL or a path they lead elsewhere."""


class VoiceAdmin:
    """Carries out requests one after the other."""

    def __init__(self, store: VoiceStore, limits: ClipLimits, key: bytes | None, lexicons: LexiconFile) -> None:
        """key: what a request that changes voices must bring; None for a store that nobody may change."""
        self._lexicons = lexicons
        self._store = store
        self._limits = limits
        self._key = key
        self._actions: Mapping[str, Callable[[Tensors], Any]] = {
            "list": self._list,
            "add": self._add,
            "delete": self._delete,
            "get": self._get,
            "lexicons": lambda _tensors: self._lexicons.listed(),
        }

    @classmethod
    def of(cls, config: Config) -> VoiceAdmin:
        """With the store, limits and lexicons of a configuration. Raises ConfigError."""
        limits = ClipLimits(config.max_clip_mb << 20, config.max_clip_seconds)
        return cls(VoiceStore(config.voice_store), limits, config.change_key(), LexiconFile(config.lexicon_file))

    def handle(self, tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
        """The answer to one request: `result`, [1, 1], is JSON.

        Raises InvalidRequest, Forbidden, NotFound, or Unavailable when the store is gone.
        """
        for name in tensors:
            if name not in INPUTS:
                raise InvalidRequest(f"unknown input {quote(name)}; the inputs are {', '.join(INPUTS)}")
        action = _text(tensors, "action")
        if action not in self._actions:
            raise InvalidRequest(f"action is {quote(action)}; it must be one of {', '.join(self._actions)}")
        if action in CHANGES:
            self._check_key(tensors)
        result = json.dumps(self._actions[action](tensors)).encode()
        return {"result": np.array([[result]], dtype=np.object_)}

    def close(self) -> None:
        """Ends the connections."""
        self._store.close()

    def _check_key(self, tensors: Tensors) -> None:
        if self._key is None:
            raise Forbidden("this server's voices cannot be changed: CHATTERBOX_VOICE_KEY is not set there")
        if "key" not in tensors:
            raise Forbidden("changes of voices need the server's CHATTERBOX_VOICE_KEY as the input 'key'")
        if not hmac.compare_digest(_bytes(tensors, "key"), self._key):
            raise Forbidden("the key is wrong: changes of voices need the server's CHATTERBOX_VOICE_KEY")

    def _list(self, _tensors: Tensors) -> Any:
        return [dataclasses.asdict(info) for info in self._store.list()]

    def _add(self, tensors: Tensors) -> Any:
        name, audio = _text(tensors, "voice"), clip_bytes(_bytes(tensors, "audio"))
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"voice is {quote(name)}; "
                "a name has 1 to 64 letters, digits, dots, dashes or underscores, not dots alone"
            )
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
