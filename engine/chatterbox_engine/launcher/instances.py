"""How many engines a model has, and on which GPUs: `instance_group` of its config.pbtxt, as a setting of the launcher.

A model repository is not changed, since it may be read-only. A copy in the launcher's private folder has other
configurations, and links for all the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from chatterbox_engine.config import Config, resolve
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.launcher.settings import parameters_of

VARIABLE = "CHATTERBOX_INSTANCES"
AUTO = "auto"

_WANTED = re.compile(r"gpu(?::(?P<gpus>\d+(?:,\d+)*))?|cpu:(?P<count>[1-9]\d*)")
_GPUS = ModelInstanceGroup(kind=ModelInstanceGroup.KIND_GPU, count=1)
_ONE = ModelInstanceGroup(kind=ModelInstanceGroup.KIND_CPU, count=1)
"""What the project's config.pbtxt says."""


def arranged(
    repository: Path, copy: Path, wanted: str, environment: Mapping[str, str], *, devices: Path = Path("/dev")
) -> Path:
    """The repository to serve: the one given, or `copy`, made of it with other instances.

    wanted: `auto`, an engine for each GPU of a machine with several, for models whose configuration and device leave it
    open; or `gpu`, `gpu:0,2`, `cpu:2`. Raises ConfigError for anything else.
    """
    group = _group(wanted, gpu_count(environment, devices))
    chosen = {
        name: group
        for name, parameters in parameters_of(repository, skip_unreadable=True).items()
        if group is not None and (wanted != AUTO or _is_open(repository / name, parameters, environment))
    }
    if not chosen:
        return repository
    copy.mkdir()
    for folder in repository.iterdir():
        if folder.name in chosen:
            _copy(folder, copy / folder.name, chosen[folder.name])
        else:
            (copy / folder.name).symlink_to(folder.absolute())
    return copy


def gpu_count(environment: Mapping[str, str], devices: Path) -> int:
    """GPUs that this machine, or container, has and CUDA_VISIBLE_DEVICES leaves."""
    there = len(list(devices.glob("nvidia[0-9]*")))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, len([name for name in visible.split(",") if name.strip()]))


def _group(wanted: str, gpus: int) -> ModelInstanceGroup | None:
    if wanted == AUTO:
        return _GPUS if gpus > 1 else None
    match = _WANTED.fullmatch(wanted)
    if match is None:
        raise ConfigError(f"{VARIABLE} is {wanted!r}; it must be auto, gpu, gpu:NUMBERS as in gpu:0,2, or cpu:COUNT")
    if match["count"]:
        return ModelInstanceGroup(kind=ModelInstanceGroup.KIND_CPU, count=int(match["count"]))
    numbers = [int(number) for number in (match["gpus"] or "").split(",") if number]
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"{VARIABLE} is {wanted!r}, which names a GPU twice")
    return ModelInstanceGroup(kind=ModelInstanceGroup.KIND_GPU, count=1, gpus=numbers)


def _is_open(folder: Path, parameters: Mapping[str, str], environment: Mapping[str, str]) -> bool:
    """Whether nobody chose instances or a device for a model."""
    return list(_read(folder).instance_group) == [_ONE] and _device(parameters, environment) == "auto"


def _device(parameters: Mapping[str, str], environment: Mapping[str, str]) -> str:
    given = resolve(parameters, environment).get("device")
    return Config.device if given is None else str(given.value)


def _copy(folder: Path, copy: Path, group: ModelInstanceGroup) -> None:
    config = _read(folder)
    del config.instance_group[:]
    config.instance_group.append(group)
    copy.mkdir()
    (copy / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    for entry in folder.iterdir():
        if entry.name != "config.pbtxt":
            (copy / entry.name).symlink_to(entry.absolute())


def _read(folder: Path) -> ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
