"""Reading weight files of both official kinds, safetensors and pickled state dicts.

A pickled one is mapped into memory and read with `weights_only`, which runs no code from the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from chatterbox_engine.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]


def shapes(path: Path) -> tuple[Shapes, dict[str, str]]:
    """Names and shapes of a file's tensors, and its metadata. Raises CheckpointError."""
    if path.suffix == ".pt":
        return {name: tuple(tensor.shape) for name, tensor in _load(path).items()}, {}
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return found, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def read(path: Path, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """The tensors whose names are `wanted`, on the CPU, floating point ones as float32."""
    if path.suffix == ".pt":
        return {name: _float32(tensor) for name, tensor in _load(path).items() if wanted(name)}
    with safe_open(path, framework="pt") as file:
        return {name: _float32(file.get_tensor(name)) for name in file.keys() if wanted(name)}  # noqa: SIM118


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        # files of torch before 1.6 cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
            raise TypeError("it holds something else than tensors")
    except Exception as error:  # torch.load raises many kinds, all of them for a bad file
        raise CheckpointError(f"{path}: not a state dict: {error}") from error
    return dict(state)


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
