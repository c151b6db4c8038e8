"""What the training scripts share: device, a budget in wall time, learning rate, averaged weights, files, progress."""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def command_line(description: str | None, seconds: float) -> argparse.ArgumentParser:
    """The options of a training: `folder`, `seconds` and `device`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=seconds, help="of wall time, over all runs")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=device, help="cuda where there is one, else cpu")
    return parser


def begin(description: str | None, seconds: float) -> argparse.Namespace:
    """Reads the command line; seeds the random numbers of every device, and has all of them compute in float32."""
    torch.manual_seed(0)
    random.seed(0)
    # TF32 would make networks this small no faster, and move the analytic estimator's velocities, which are differences
    # of large numbers (`train_flow`), by 0.17 where they are 2.1 (means, its rounding emulated).
    torch.backends.cudnn.allow_tf32 = False
    return command_line(description, seconds).parse_args()


def read(path: Path) -> dict[str, Any]:
    """What `Training` wrote, on the CPU wherever it was trained."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def precision() -> AbstractContextManager[None]:
    """bfloat16 for the matrix products of a CPU that has it; others emulate it, slowly, and a GPU stays at float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Training:
    """A module, moved to `device`, trained for `seconds` of wall time in all, over as many runs as it takes.

    The state on disk (`path`) holds weights, their running average, the optimiser and the time used, so that a run that
    was cut off goes on where it was, on the same device or another. With torch.distributed (processes on a CPU)
    gradients and time are averaged over the processes, and the first one writes and reports. The learning rate warms up
    over `warm` steps, then falls to a twentieth along a cosine of the time used.
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
        warm: int = 200,
        average: float = 0.998,
    ) -> None:
        self.module, self.path, self.seconds, self.device = module.to(device), path, seconds, device
        self._rate, self._clip, self._warm, self._average = rate, clip, warm, average
        self._wanted = [weight for weight in module.parameters() if weight.requires_grad]
        self._optimiser = torch.optim.AdamW(self._wanted, lr=rate, betas=betas, weight_decay=decay)
        self.averaged = {key: value.clone() for key, value in module.state_dict().items()}
        self.step, self.used, self._last = 0, 0.0, time.monotonic()
        if path.exists():
            state = read(path)
            module.load_state_dict(state["module"])
            self.averaged = {key: value.to(device) for key, value in state["averaged"].items()}
            self.step, self.used = state["step"], state["used"]
            self._optimiser.load_state_dict(state["optimiser"])
        self._sums: dict[str, float] = {}
        self._count = 0

    @property
    def share(self) -> float:
        """Of the time, what is used."""
        return min(1.0, self.used / self.seconds)

    def steps(self, report: int = 50, save: float = 60.0) -> Iterator[int]:
        """Yields until the time is used, prints mean losses every `report` steps, writes the state every `save` s."""
        name = self.path.stem
        self._last = saved = time.monotonic()
        while self.used < self.seconds:
            cosine = 0.5 * (1 + math.cos(math.pi * self.share))
            for group in self._optimiser.param_groups:
                group["lr"] = self._rate * min(1.0, (self.step + 1) / self._warm) * max(0.05, cosine)
            yield self.step
            if self.step % report == 0 and self._first:
                losses = " ".join(f"{key} {value / self._count:.4f}" for key, value in self._sums.items())
                print(f"{name}: step {self.step}, {self.used:.0f} of {self.seconds:.0f} s, {losses}", flush=True)
                self._sums, self._count = {}, 0
            if time.monotonic() - saved > save and self._first:
                self.save()
                saved = time.monotonic()
        if self._first:
            self.save()

    @property
    def _first(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

    def _share_gradients(self) -> None:
        """And the time used, so that all processes end after the same step."""
        if not dist.is_initialized():
            return
        time = torch.tensor([self.used])
        together = torch.cat([*(weight.grad.flatten() for weight in self._wanted if weight.grad is not None), time])
        dist.all_reduce(together)
        together /= dist.get_world_size()
        self.used = float(together[-1])
        begin = 0
        for weight in self._wanted:
            if weight.grad is not None:
                weight.grad.copy_(together[begin : begin + weight.numel()].view_as(weight))
                begin += weight.numel()

    def learn(self, loss: torch.Tensor, /, **losses: torch.Tensor) -> None:
        """One optimiser step; `losses` are for the report."""
        self._optimiser.zero_grad()
        loss.backward()
        now = time.monotonic()
        self.used, self._last = self.used + now - self._last, now
        self._share_gradients()
        torch.nn.utils.clip_grad_norm_(self._wanted, self._clip)
        self._optimiser.step()
        self.step += 1
        self._count += 1
        for key, value in losses.items():
            self._sums[key] = self._sums.get(key, 0.0) + float(value.detach())
        momentum = min(self._average, 1 - 1 / (self.step / 10 + 1))
        with torch.no_grad():
            for key, value in self.module.state_dict().items():
                if value.is_floating_point():
                    self.averaged[key].lerp_(value, 1 - momentum)

    def save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "averaged": self.averaged,
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
            "used": self.used,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.path)
