"""Environment variables that several parts of the engine read. An engine's settings are `config`'s."""

from __future__ import annotations

import os
from pathlib import Path

PREFIX = "CHATTERBOX_"
"""Of the name of every variable."""


def cache_folder() -> Path:
    """Where generated files are kept between runs: `$CHATTERBOX_CACHE`, or `~/.cache/chatterbox-triton`."""
    return Path(os.environ.get(f"{PREFIX}CACHE") or Path.home() / ".cache" / "chatterbox-triton")
