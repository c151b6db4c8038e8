"""What the training scripts share: device, a budget in wall time, learning rate, averaged weights, files, progress."""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from chatterbox_engine.kernels.processor import multiplies_bfloat16_faster

COOLING = 0.4
"""The share of the time, at its end, in which the learning rate falls to zero."""


def command_line(description: str | None, seconds: float) -> argparse.ArgumentParser:
    """The options of a training: `folder`, `seconds`, `device` and `threads`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=seconds, help="of wall time, over all runs")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=device, help="cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU")
    return parser


def begin(description: str | None, seconds: float) -> argparse.Namespace:
    """Reads the command line; seeds the random numbers of every device, and has all of them compute in float32."""
    return seeded(command_line(description, seconds))


def seeded(parser: argparse.ArgumentParser) -> argparse.Namespace:
    arguments = parser.parse_args()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(arguments.threads)
    # TF32 would make networks this small no faster
    torch.backends.cudnn.allow_tf32 = False
    return arguments


def read(path: Path) -> dict[str, Any]:
    """What `Training` wrote, on the CPU wherever it was trained."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def precision() -> AbstractContextManager[None]:
    """bfloat16 for the matrix products of a CPU that multiplies it faster than float32; a GPU stays at float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16_faster())


class Training:
    """A module, moved to `device`, trained for `seconds` of wall time in all, over as many runs as it takes.

    The state on disk (`path`) holds weights, their running average, the optimisers' and the time used, so that a run
    that was cut off goes on where it was, on the same device or another. The learning rate warms up over `warm`
    steps, and falls to zero in the last `COOLING` of the time. Several processes, which torchrun starts, share their
    gradients, and the first one writes and reports. Matrices in `muon` are trained by Muon (Jordan, 2024), all other
    weights by AdamW.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        path: Path,
        seconds: float,
        device: torch.device,
        *,
        rate: float,
        betas: tuple[float, float] = (0.9, 0.98),
        decay: float = 0.0,
        clip: float = 1.0,
        warm: int = 100,
        average: float = 0.998,
        muon: Iterable[torch.nn.Parameter] = (),
    ) -> None:
        self.module, self.path, self.seconds, self.device = module.to(device), path, seconds, device
        self._rate, self._clip, self._warm, self._average = rate, clip, warm, average
        self._wanted = [weight for weight in module.parameters() if weight.requires_grad]
        hidden = list(muon)
        ids = {id(weight) for weight in hidden}
        others = [weight for weight in self._wanted if id(weight) not in ids]
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=rate, betas=betas, weight_decay=0.0 if hidden else decay)
        ]
        if hidden:
            self._optimisers.append(
                torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            )
        self.averaged = {key: value.clone() for key, value in module.state_dict().items()}
        self.step, self.used, self._last = 0, 0.0, time.monotonic()
        if path.exists():
            self._restore(read(path))
        self._sums: dict[str, tuple[float, int]] = {}
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        seed = 1000 * self.step + self._rank
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def _restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.averaged = {key: value.to(self.device) for key, value in state["averaged"].items()}
        self.step, self.used = state["step"], state["used"]
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)

    @property
    def share(self) -> float:
        """Of the time, what is used."""
        return min(1.0, self.used / self.seconds)

    def rate(self) -> float:
        """The learning rate of the next step."""
        return self._rate * min(1.0, (self.step + 1) / self._warm, (1 - self.share) / COOLING)

    def steps(self, report: int = 50, save: float = 60.0) -> Iterator[int]:
        """Yields until the time is used, prints mean losses every `report` steps, writes the state every `save` s."""
        name = self.path.stem
        self._last = saved = time.monotonic()
        while self.used < self.seconds:
            for group in (group for optimiser in self._optimisers for group in optimiser.param_groups):
                group["lr"] = self.rate()
            yield self.step
            if self.step % report == 0 and not self._rank:
                losses = " ".join(f"{key} {value / count:.4f}" for key, (value, count) in self._sums.items())
                print(f"{name}: step {self.step}, {self.used:.0f} of {self.seconds:.0f} s, {losses}", flush=True)
                self._sums = {}
            if time.monotonic() - saved > save:
                self.save()
                saved = time.monotonic()
        self.save()

    def _share(self) -> None:
        """Averages gradients and time over the processes, which all end after the same step then."""
        if not dist.is_initialized():
            return
        gradients = [weight.grad for weight in self._wanted if weight.grad is not None]
        together = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([self.used])])
        dist.all_reduce(together)
        together /= dist.get_world_size()
        self.used = float(together[-1])
        parts = together[:-1].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def learn(self, loss: torch.Tensor, /, **losses: torch.Tensor) -> None:
        """One step of the optimisers; `losses` are for the report."""
        for optimiser in self._optimisers:
            optimiser.zero_grad()
        loss.backward()
        now = time.monotonic()
        self.used, self._last = self.used + now - self._last, now
        self._share()
        torch.nn.utils.clip_grad_norm_(self._wanted, self._clip)
        for optimiser in self._optimisers:
            optimiser.step()
        self.step += 1
        for key, value in losses.items():
            total, count = self._sums.get(key, (0.0, 0))
            self._sums[key] = total + float(value.detach()), count + 1
        momentum = min(self._average, 1 - 1 / (self.step / 10 + 1))
        with torch.no_grad():
            for key, value in self.module.state_dict().items():
                if value.is_floating_point():
                    self.averaged[key].lerp_(value, 1 - momentum)

    def save(self) -> None:
        if self._rank:
            return
        state = {
            "module": self.module.state_dict(),
            "averaged": self.averaged,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "step": self.step,
            "used": self.used,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.path)
