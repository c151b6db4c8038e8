"""Which attention heads of a checkpoint's T3 follow the text: named by a setting, found and kept, or its own.

`python -m tools.alignment` finds them. What it finds is kept by the checkpoint's identity, a file of JSON each, so that
a fine-tune has its own list and a changed file has none.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.environment import cache_folder
from chatterbox_engine.errors import CheckpointError, ConfigError
from chatterbox_engine.types import Head


@dataclass(frozen=True)
class TextHeads:
    """Heads of T3 that follow the text."""

    heads: tuple[Head, ...] = ()
    peak: float = 0.0
    """Their usual highest attention on one place of the text; 0 where it is not known."""


AUTO, NONE = "auto", "none"


def alignment_heads(setting: str, checkpoint: Checkpoint, cache: Path | None = None) -> TextHeads:
    """The heads that a setting means: `auto` (those found and kept, else the checkpoint's own), `none`, or a list like
    `12:15,13:11,9:2` of layers and heads.

    Raises ConfigError for a list that is none, or names a head that there is not, and CheckpointError for a kept file
    that cannot be used.
    """
    if setting == NONE:
        return TextHeads()
    if setting == AUTO:
        path = kept_path(checkpoint.identity, cache)
        own = TextHeads(checkpoint.dims.alignment_heads, checkpoint.dims.alignment_peak)
        return _read(path, checkpoint) if path.is_file() else own
    pairs = [re.fullmatch(r"\s*(\d+):(\d+)\s*", part) for part in setting.split(",")]
    if not all(pairs):
        raise ConfigError(f"alignment_heads is {setting!r}; it must be auto, none, or a list like 12:15,13:11,9:2")
    try:
        named = [[int(pair[1]), int(pair[2])] for pair in pairs if pair]
        return TextHeads(checkpoint.dims.t3.checked_heads(named))
    except ValueError as error:
        raise ConfigError(f"alignment_heads: {error}") from error


def keep(heads: TextHeads, checkpoint: Checkpoint, cache: Path | None = None) -> Path:
    """Keeps the heads of a checkpoint for all engines that will serve it. Returns the file."""
    path = kept_path(checkpoint.identity, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(heads)) + "\n", encoding="utf-8")
    partial.rename(path)
    return path


def kept_path(identity: str, cache: Path | None = None) -> Path:
    """Where the heads of the checkpoint with this identity are kept: in `cache`, by default that of this project."""
    return (cache or cache_folder()) / "alignment" / f"{identity}.json"


def _read(path: Path, checkpoint: Checkpoint) -> TextHeads:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return TextHeads(checkpoint.dims.t3.checked_heads(kept["heads"]), float(kept["peak"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a list of heads: {error}") from error
