"""Reads the official state dict, strictly."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from chatterbox_engine.errors import CheckpointError
from chatterbox_engine.s3gen.layers import Conv, Linear, Norm, image_weight

_NAMED_IN_ERROR = 20


class _Ledger:
    """Which tensors of the state dict have not been read yet, and what is wrong with the others."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.unread = dict(state)
        self.wrong: list[str] = []


class Weights:
    """A part of a state dict, by name prefix; the parts share one record of what was read.

    A missing tensor or one of another shape is noted, replaced by zeros, and raised by `finish` with all the others.
    """

    def __init__(self, state: Mapping[str, Tensor], prefixes: tuple[str, ...], device: torch.device) -> None:
        self._ledger = _Ledger({name: tensor for name, tensor in state.items() if name.startswith(prefixes)})
        self._prefix = ""
        self.device = device
        self._dtype = self._matrices = torch.float32

    def part(self, name: str) -> Weights:
        """The tensors under `name.`."""
        part = copy.copy(self)
        part._prefix = f"{self._prefix}{name}."
        return part

    def cast(self, dtype: torch.dtype, *, matrices: torch.dtype | None = None) -> Weights:
        """The same tensors, read as another dtype. matrices: that of linear layers and convolutions, if another."""
        part = copy.copy(self)
        part._dtype, part._matrices = dtype, matrices or dtype
        return part

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor of that name and shape, on the device. dtype: if another than that of all."""
        dtype = dtype or self._dtype
        full = self._prefix + name
        tensor = self._ledger.unread.pop(full, None)
        if tensor is None:
            self._ledger.wrong.append(f"{full} is missing")
        elif tuple(tensor.shape) != shape:
            self._ledger.wrong.append(f"{full} has shape {list(tensor.shape)}, not {list(shape)}")
        else:
            return tensor.detach().to(self.device, dtype)
        return torch.zeros(shape, device=self.device, dtype=dtype)

    def linear(self, name: str, inputs: int, outputs: int) -> Linear:
        """A linear layer with a bias."""
        return Linear(*self._layer(name, outputs, inputs))

    def norm(self, name: str, width: int, eps: float = 1e-5) -> Norm:
        """A layer norm over the last dimension."""
        return Norm(self.take(f"{name}.weight", width), self.take(f"{name}.bias", width), eps)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> Conv:
        """A convolution with a bias."""
        weight, bias = self._layer(name, outputs, inputs, kernel)
        return Conv(image_weight(weight), bias, stride=stride, padding=padding)

    def pointwise(self, name: str, inputs: int, outputs: int) -> Linear:
        """A convolution of kernel 1."""
        weight, bias = self._layer(name, outputs, inputs, 1)
        return Linear(weight.squeeze(2), bias)

    def _layer(self, name: str, outputs: int, *shape: int) -> tuple[Tensor, Tensor]:
        """The weight, [outputs, *shape], and the bias."""
        kept = self._matrices
        return self.take(f"{name}.weight", outputs, *shape, dtype=kept), self.take(f"{name}.bias", outputs, dtype=kept)

    def normed_conv(self, name: str, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> Conv:
        """A convolution with weight norm that keeps the number of positions."""
        weight, bias = self.weight_norm(name, outputs, inputs, kernel), self.take(f"{name}.bias", outputs)
        return Conv(image_weight(weight), bias, dilation, padding=(kernel - 1) * dilation // 2)

    def weight_norm(self, name: str, *shape: int) -> Tensor:
        """A weight that the checkpoint holds as magnitude and direction, multiplied out."""
        at = f"{name}.parametrizations.weight"
        magnitude = self.take(f"{at}.original0", shape[0], *[1] * (len(shape) - 1))
        return torch._weight_norm(self.take(f"{at}.original1", *shape), magnitude, 0)

    def finish(self) -> None:
        """Raises CheckpointError when a tensor was missing, of another shape, or never asked for."""
        wrong = self._ledger.wrong + [f"{name} is unknown" for name in sorted(self._ledger.unread)]
        if wrong:
            more = f" and {len(wrong) - _NAMED_IN_ERROR} more" if len(wrong) > _NAMED_IN_ERROR else ""
            raise CheckpointError(f"S3Gen weights: {'; '.join(wrong[:_NAMED_IN_ERROR])}{more}")
