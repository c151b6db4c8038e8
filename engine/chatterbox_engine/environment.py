"""Environment variables that several parts of the engine read. An engine's settings are `config`'s."""

from __future__ import annotations

import os
from pathlib import Path

PREFIX = "CHATTERBOX_"
"""Of the name of every variable."""


CACHE_VARIABLE = f"{PREFIX}CACHE"


def cache_folder() -> Path:
    """Where generated files are kept between runs: `$CHATTERBOX_CACHE`, or `~/.cache/chatterbox-triton`."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "chatterbox-triton")
