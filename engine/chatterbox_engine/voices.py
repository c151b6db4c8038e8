"""Voices by name, and what each network computes once per voice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from chatterbox_engine.checkpoint import Checkpoint
from chatterbox_engine.errors import NotFound
from chatterbox_engine.types import Conditionals

DEFAULT = "default"
"""The name of the checkpoint's built-in voice."""

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice that can speak; `key` tells its contents apart from any other's."""

    key: str
    conditionals: Conditionals


class Voices:
    """The voices that requests may name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._known: dict[str, Voice] = {}
        built_in = checkpoint.conditionals()
        if built_in is not None:
            self._known[DEFAULT] = Voice(f"{checkpoint.identity}/{DEFAULT}", built_in)

    def get(self, name: str) -> Voice:
        """The voice of this name. Raises NotFound."""
        if name not in self._known:
            known = ", ".join(sorted(self._known)) or "none"
            raise NotFound(f"there is no voice {name!r}; known voices: {known}")
        return self._known[name]


class Memo(Generic[V]):
    """The most recently used results of a computation. Belongs to one thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], V]) -> V:
        """The result kept under `key`, computed when there is none."""
        if key not in self._kept:
            self._kept[key] = compute()
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
