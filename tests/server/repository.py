"""A model repository that serves several checkpoints side by side."""

from __future__ import annotations

import shutil
from pathlib import Path

_ORIGINAL = Path(__file__).parents[2] / "model_repository"


def add_pair(repository: Path, name: str, checkpoint: Path) -> None:
    """Copies `chatterbox` and `chatterbox_stream` as `name` and `name_stream`, which serve this checkpoint."""
    for suffix in ("", "_stream"):
        shutil.copytree(_ORIGINAL / f"chatterbox{suffix}", repository / f"{name}{suffix}")
    with (repository / name / "config.pbtxt").open("a") as config:
        config.write(f'parameters: {{ key: "checkpoint" value: {{ string_value: "{checkpoint}" }} }}\n')


def add_voices(repository: Path) -> None:
    """Copies `chatterbox_voices`, which serves them all."""
    shutil.copytree(_ORIGINAL / "chatterbox_voices", repository / "chatterbox_voices")
