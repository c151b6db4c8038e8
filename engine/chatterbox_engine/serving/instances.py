"""The instances of a model: Triton runs a process, with an engine of its own, for each. Imports no torch."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError

_LOCK = "loading.lock"


@dataclass(frozen=True)
class Instance:
    """One of a model's instances (`instance_group` of its config.pbtxt)."""

    index: int = 0
    """Among those of the model."""
    count: int = 1
    """Instances of the model."""
    gpu: int | None = None
    """CUDA's number of the GPU that Triton gave it; None for KIND_CPU."""

    @classmethod
    def of(cls, arguments: Mapping[str, str]) -> Instance:
        """From the arguments of a Python model's `initialize`.

        An instance has the name of its group with its number there, which older Tritons leave away where it is alone.
        On several GPUs the instances of a group have the same names.
        """
        name = arguments["model_instance_name"]
        places = [
            (group["name"] if name == group["name"] else f"{group['name']}_{number}", gpu)
            for group in json.loads(arguments["model_config"])["instance_group"]
            for number in range(group["count"])
            for gpu in (group.get("gpus") or [None])
        ]
        gpu = int(arguments["model_instance_device_id"]) if arguments["model_instance_kind"] == "GPU" else None
        return cls(places.index((name, gpu)), len(places), gpu)

    def settings(self, config: Config, cores: int) -> Config:
        """The model's settings for this instance: its device, and on a CPU its share of the cores.

        Raises ConfigError for a device other than the GPU that Triton gave it.
        """
        if self.gpu is not None:
            device = f"cuda:{self.gpu}"
            if config.device not in ("auto", "cuda", device):
                raise ConfigError(f"device is {config.device!r}, but instance_group puts this instance on {device}")
            return replace(config, device=device)
        if self.count == 1:
            return config
        device = "cpu" if config.device == "auto" else config.device
        threads = config.cpu_threads or max(1, cores // 2 // self.count)
        return replace(config, device=device, cpu_threads=threads)


@contextlib.contextmanager
def turn_to_load(folder: str | None) -> Iterator[None]:
    """Waits until no other process of this server loads weights: several at once would read a disk in turns of a few
    blocks, and plan with the same free memory.

    folder: the launcher's private one; None waits for nobody.
    """
    if folder is None:
        yield
        return
    with (Path(folder) / _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process
        yield
