"""A model repository that serves several checkpoints side by side."""

from __future__ import annotations

import shutil
from pathlib import Path

_ORIGINAL = Path(__file__).parents[2] / "model_repository"


def add_pair(repository: Path, name: str, **settings: str) -> None:
    """Copies `chatterbox` and `chatterbox_stream` as `name` and `name_stream`, with settings of their own."""
    for suffix in ("", "_stream"):
        shutil.copytree(_ORIGINAL / f"chatterbox{suffix}", repository / f"{name}{suffix}")
    with (repository / name / "config.pbtxt").open("a") as config:
        for setting, value in settings.items():
            config.write(f'parameters: {{ key: "{setting}" value: {{ string_value: "{value}" }} }}\n')


def add_voices(repository: Path) -> None:
    """Copies `chatterbox_voices`, which serves them all."""
    shutil.copytree(_ORIGINAL / "chatterbox_voices", repository / "chatterbox_voices")
