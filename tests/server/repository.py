"""A model repository that serves several checkpoints side by side."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

_ORIGINAL = Path(__file__).parents[2] / "model_repository"


def add_pair(repository: Path, name: str, checkpoint: Path) -> None:
    """Copies `chatterbox` and `chatterbox_stream` as `name` and `name_stream`, which serve this checkpoint."""
    for suffix in ("", "_stream"):
        folder = repository / f"{name}{suffix}"
        shutil.copytree(_ORIGINAL / f"chatterbox{suffix}", folder)
        config = folder / "config.pbtxt"
        text = re.sub(r'"chatterbox(_stream)?"', rf'"{name}\1"', config.read_text())
        if not suffix:
            text += f'\nparameters: {{ key: "checkpoint" value: {{ string_value: "{checkpoint}" }} }}\n'
        config.write_text(text)


def add_voices(repository: Path) -> None:
    """Copies `chatterbox_voices`, which serves them all."""
    shutil.copytree(_ORIGINAL / "chatterbox_voices", repository / "chatterbox_voices")
