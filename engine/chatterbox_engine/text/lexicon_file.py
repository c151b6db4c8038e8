"""The pronunciations of a server and of its voices: a file that is read again when it has changed."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chatterbox_engine.errors import ConfigError, InvalidRequest
from chatterbox_engine.text.lexicon import Lexicon, checked

_log = logging.getLogger(__name__)

_PARTS = ("words", "voices")


@dataclass(frozen=True)
class Lexicons:
    """What a file holds."""

    words: Mapping[str, str] = field(default_factory=dict)
    """For every voice."""
    voices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Of single voices, before those of all."""


class LexiconFile:
    """Thread-safe. Where a changed file cannot be read, the entries before it stay, and the log says why."""

    def __init__(self, path: str = "") -> None:
        """path: YAML or JSON; empty: no entries. Raises ConfigError for a file that cannot be used."""
        self._path = Path(path) if path else None
        self._lock = threading.Lock()
        self._state = _state(self._path)
        self._lexicons = Lexicons() if self._path is None else read(self._path)
        self._by_voice: dict[str | None, Lexicon] = {}
        self._error: str | None = None

    def of(self, voice: str | None, own: Mapping[str, str]) -> Lexicon:
        """The entries for a request: its own before its voice's before those of all. voice: None for a clip."""
        if self._path is None:
            return Lexicon(own)
        with self._lock:
            self._reload(self._path)
            if voice not in self._lexicons.voices:
                voice = None
            if voice not in self._by_voice:
                others = {} if voice is None else self._lexicons.voices[voice]
                self._by_voice[voice] = Lexicon({**self._lexicons.words, **others})
            found = self._by_voice[voice]
        return Lexicon({**found.entries, **own}) if own else found

    def listed(self) -> dict[str, Any]:
        """All entries, `words` and `voices`; `error` says why the file as it is now cannot be used, or is None."""
        with self._lock:
            if self._path is not None:
                self._reload(self._path)
            return {"words": self._lexicons.words, "voices": self._lexicons.voices, "error": self._error}

    def _reload(self, path: Path) -> None:
        state = _state(path)
        if state == self._state:
            return
        self._state = state
        try:
            self._lexicons = read(path)
        except ConfigError as error:
            self._error = str(error)
            _log.warning("%s; the entries before stay", error)
            return
        self._error = None
        self._by_voice.clear()


def read(path: Path) -> Lexicons:
    """A file's entries. Raises ConfigError."""
    name = f"lexicon_file {path}"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{name} cannot be read: {error}") from error
    if not isinstance(content, dict) or not set(content) <= set(_PARTS):
        raise ConfigError(f"{name} must hold {' and '.join(_PARTS)}, and nothing else")
    voices = content.get("voices") or {}
    if not isinstance(voices, dict) or not all(isinstance(voice, str) for voice in voices):
        raise ConfigError(f"{name}: voices must hold the names of voices, each with its words")
    try:
        return Lexicons(
            checked(content.get("words") or {}, f"{name}: words"),
            {voice: checked(entries or {}, f"{name}: {voice}") for voice, entries in voices.items()},
        )
    except InvalidRequest as error:
        raise ConfigError(f"{error}; YAML reads yes, no and numbers as other things than words: quote them") from error


def _state(path: Path | None) -> tuple[int, int, int] | None:
    """What changes with a file's content."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)
