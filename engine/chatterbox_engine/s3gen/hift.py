"""Mel to waveform: a neural source filter with an inverse Fourier transform at its end (arXiv 2309.09493).

Follows upstream `hifigan.py` and `f0_predictor.py`; always float32; tensors are [rows, positions, channels]. Nothing
in it is causal, so in a padded batch every convolution's input is set to zero after the row's end: the same as the
zero padding of the row alone. Both Fourier transforms are convolutions, which can be captured in a graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.s3gen.layers import Conv, ConvTransposed, cut, image_weight, length_mask
from chatterbox_engine.s3gen.noise import HARMONICS, SAMPLES_PER_FRAME
from chatterbox_engine.s3gen.weights import Weights
from chatterbox_engine.types import SAMPLE_RATE

_UPSAMPLING = ((8, 16), (5, 11), (3, 7))  # stride, kernel
_KERNELS = (3, 7, 11)
_SOURCE_KERNELS = (7, 7, 11)
_SOURCE_STRIDES = (15, 3, 1)
_DILATIONS = (1, 3, 5)
_FFT, _HOP = 16, 4
_BINS = _FFT + 2  # real and imaginary parts of nine frequencies
_STEPS_PER_FRAME = 120  # transform steps; a row has one more
_F0_LAYERS = 5
_VOICED_ABOVE, _SINE, _NOISE = 10.0, 0.1, 0.003
_MAX_MAGNITUDE, _MAX_SAMPLE = 100.0, 0.99


class Hift:
    """The vocoder."""

    def __init__(self, weights: Weights, dims: S3GenDims) -> None:
        """weights: the `mel2wav` part."""
        self._f0 = _PitchPredictor(weights.part("f0_predictor"), dims)
        self._source = _Source(weights.part("m_source"))
        self._fourier = _Fourier(weights.device)
        self._enter = weights.normed_conv("conv_pre", dims.mel, dims.hift, 7)
        self._stages = [_Stage(weights, i, dims.hift >> i) for i in range(len(_UPSAMPLING))]
        self._leave = weights.normed_conv("conv_post", dims.hift >> len(_UPSAMPLING), _BINS, 7)

    def pitch(self, mel: Tensor, frames: Tensor | None) -> Tensor:
        """Fundamental frequencies in Hz, one per frame, of rows as `__call__` takes them. Returns [rows, n]."""
        ends = _Ends(frames, mel.shape[1])
        return self._f0(ends.cut(mel), ends)

    def __call__(self, mel: Tensor, phases: Tensor, noise: Tensor, frames: Tensor | None) -> Tensor:
        """Synthesises padded rows.

        mel: [rows, n, mel]; phases: [rows, HARMONICS]; noise: [rows, 480 n]; frames: [rows] int64, None when every row
        has n. Returns [rows, 480 n] in [-0.99, 0.99]; samples after a row's end are padding.
        """
        ends = _Ends(frames, mel.shape[1])
        mel = ends.cut(mel)
        source = self._source(self._f0(mel, ends), phases, noise)
        spectrum = ends.cut(self._fourier.analyse(source, frames), _STEPS_PER_FRAME, 1)
        x = ends.cut(self._enter(mel))
        rate = 1
        for i, stage in enumerate(self._stages):
            rate *= _UPSAMPLING[i][0]
            x = stage(x, spectrum, ends, rate)
        return self._fourier.synthesise(self._leave(F.leaky_relu(x)), ends)


@dataclass(frozen=True)
class _Ends:
    """Where the rows of a padded batch end."""

    frames: Tensor | None  # [rows] mel frames; None: at the end of the tensor
    size: int  # mel frames of the tensor

    def mask(self, rate: int = 1, extra: int = 0) -> Tensor | None:
        """True inside the rows, at `rate` positions per frame plus `extra`. [rows, size * rate + extra, 1] bool."""
        if self.frames is None:
            return None
        return length_mask(self.frames * rate + extra, self.size * rate + extra)[..., None]

    def cut(self, x: Tensor, rate: int = 1, extra: int = 0) -> Tensor:
        """Zeroes the padding of the rows."""
        return cut(x, self.mask(rate, extra))


class _PitchPredictor:
    """Mel to fundamental frequency in Hz, one per frame."""

    def __init__(self, weights: Weights, dims: S3GenDims) -> None:
        widths = [dims.mel] + [dims.f0] * _F0_LAYERS
        self._convs = [
            weights.normed_conv(f"condnet.{2 * i}", inputs, outputs, 3)
            for i, (inputs, outputs) in enumerate(pairwise(widths))
        ]
        self._out = weights.linear("classifier", dims.f0, 1)

    def __call__(self, mel: Tensor, ends: _Ends) -> Tensor:
        """mel: [rows, frames, mel]. Returns [rows, frames]."""
        x, mask = mel, ends.mask()
        for conv in self._convs:
            x = cut(F.elu(conv(x)), mask)
        return self._out(x).squeeze(2).abs()


class _Source:
    """Sines at the fundamental and its overtones where a frame is voiced, noise where it is not."""

    def __init__(self, weights: Weights) -> None:
        self._mix = weights.linear("l_linear", HARMONICS, 1)
        self._noise_scale = self._mix.weight.norm()
        self._orders = torch.arange(1, HARMONICS + 1, device=weights.device)[:, None]

    def __call__(self, f0: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        """f0: [rows, frames] Hz. Returns [rows, 480 frames].

        The pitch is constant within a frame, so cycles are counted per frame, in float64 and modulo one, and the
        samples continue from there: upstream's sum over samples loses precision as the utterance gets longer.
        """
        cycles = f0[:, None] * self._orders / SAMPLE_RATE  # [rows, harmonics, frames] per sample
        before = (cycles.double().cumsum(-1) - cycles) * SAMPLES_PER_FRAME % 1.0
        sample = torch.arange(1, SAMPLES_PER_FRAME + 1, device=f0.device)
        angle = 2 * math.pi * ((before.float()[..., None] + cycles[..., None] * sample) % 1.0)
        sines = torch.sin(angle.flatten(2) + phases[..., None])
        tone = _SINE * (self._mix.weight @ sines).squeeze(1)
        voiced = (f0 > _VOICED_ABOVE).float().repeat_interleave(SAMPLES_PER_FRAME, dim=1)
        loudness = voiced * _NOISE + (1 - voiced) * _SINE / 3
        return torch.tanh(tone * voiced + loudness * self._noise_scale * noise + self._mix.bias)


class _Stage:
    """One upsampling, the source added at that rate, and the mean of three residual stacks."""

    def __init__(self, weights: Weights, index: int, width: int) -> None:
        """width: input channels; half as many come out."""
        stride, kernel = _UPSAMPLING[index]
        up = weights.weight_norm(f"ups.{index}", width, width // 2, kernel)
        self._up = ConvTransposed(image_weight(up), weights.take(f"ups.{index}.bias", width // 2), stride)
        stride = _SOURCE_STRIDES[index]
        kernel = 2 * stride if stride > 1 else 1
        self._source = weights.conv(
            f"source_downs.{index}", _BINS, width // 2, kernel, stride=stride, padding=stride // 2
        )
        self._source_stack = _Stack(weights.part(f"source_resblocks.{index}"), width // 2, _SOURCE_KERNELS[index])
        self._stacks = [
            _Stack(weights.part(f"resblocks.{index * len(_KERNELS) + i}"), width // 2, kernel)
            for i, kernel in enumerate(_KERNELS)
        ]
        self._last = index == len(_UPSAMPLING) - 1

    def __call__(self, x: Tensor, spectrum: Tensor, ends: _Ends, rate: int) -> Tensor:
        """x: [rows, n, width]; rate: positions per mel frame after upsampling. Returns [rows, stride n, width / 2]."""
        mask = ends.mask(rate, extra=int(self._last))
        x = self._up(F.leaky_relu(x, 0.1))
        if self._last:  # the transform has one step more than there are positions: the second one in front
            x = torch.cat([x[:, 1:2], x], dim=1)
        x = cut(x + self._source_stack(cut(self._source(spectrum), mask), mask), mask)
        total = self._stacks[0](x, mask)
        for stack in self._stacks[1:]:
            total = total + stack(x, mask)
        return cut(total / len(self._stacks), mask)


class _Stack:
    """Three residual pairs of convolutions with growing dilation, each after a Snake activation (arXiv 2006.08195)."""

    def __init__(self, weights: Weights, width: int, kernel: int) -> None:
        self._pairs = [
            (
                _Snake(weights, f"activations1.{i}", width),
                weights.normed_conv(f"convs1.{i}", width, width, kernel, dilation),
                _Snake(weights, f"activations2.{i}", width),
                weights.normed_conv(f"convs2.{i}", width, width, kernel),
            )
            for i, dilation in enumerate(_DILATIONS)
        ]

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The convolutions read no padding; the result's padding is not zeroed."""
        active = self._pairs[0][0](x, mask)
        for (_, conv1, snake2, conv2), (following, *_) in pairwise(self._pairs):
            x, active = following.of_sum(x, conv2, snake2.after(conv1, active, mask), mask)
        _, conv1, snake2, conv2 = self._pairs[-1]
        return x + conv2(snake2.after(conv1, active, mask))


class _Snake:
    """x + sin(alpha x)^2 / alpha, zero where a mask is False. On a GPU one kernel, with the sum before it."""

    def __init__(self, weights: Weights, name: str, width: int) -> None:
        self._alpha = weights.take(f"{name}.alpha", width)
        self._inverse = 1.0 / (self._alpha + 1e-9)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self._of(x, mask)[1]

    def after(self, conv: Conv, x: Tensor, mask: Tensor | None) -> Tensor:
        """Snake of a convolution of x."""
        product, bias = conv.in_parts(x)
        return self._of(product, mask, bias)[1]

    def of_sum(self, x: Tensor, conv: Conv, active: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of x and a convolution of `active`, and Snake of the sum."""
        product, bias = conv.in_parts(active)
        return self._of(x, mask, bias, product)

    def _of(
        self, x: Tensor, mask: Tensor | None, bias: Tensor | None = None, change: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if x.is_cuda:
            from chatterbox_engine.s3gen.snake_cuda import snake

            return snake(x, self._alpha, self._inverse, mask, bias=bias, change=change)
        assert bias is None, "on a CPU the convolution adds it"
        from chatterbox_engine.kernels.cpu.snake import snake as on_cpu

        return on_cpu(x, self._alpha, self._inverse, mask, change=change)


class _Fourier:
    """Short-time transforms of 16 samples every 4, Hann window, centred, as products with fixed matrices."""

    def __init__(self, device: torch.device) -> None:
        window = torch.hann_window(_FFT, dtype=torch.float64)
        sample, frequency = torch.arange(_FFT, dtype=torch.float64), torch.arange(_FFT // 2 + 1)[:, None]
        angle = 2 * math.pi * frequency * sample / _FFT
        forward = torch.cat([angle.cos(), -angle.sin()]) * window
        twice = torch.where((frequency == 0) | (frequency == _FFT // 2), 1.0, 2.0) / _FFT  # conjugate frequencies
        back = torch.cat([angle.cos() * twice, -angle.sin() * twice]) * window
        self._forward = forward.T.float().to(device)  # [_FFT, _BINS]
        self._back = back.float().to(device)  # [_BINS, _FFT]
        self._power = window.square().float().to(device)  # [_FFT]

    def analyse(self, signal: Tensor, frames: Tensor | None) -> Tensor:
        """signal: [rows, samples], reflected at each row's own ends. Returns [rows, samples / 4 + 1, _BINS]."""
        half = _FFT // 2
        if frames is None:
            padded = F.pad(signal[:, None], (half, half), mode="reflect")[:, 0]
        else:
            last = SAMPLES_PER_FRAME * frames[:, None] - 1
            position = torch.arange(-half, signal.shape[1] + half, device=signal.device).abs()
            mirrored = torch.where(position <= last, position, 2 * last - position)
            padded = signal.gather(1, mirrored.clamp(min=0))
        return padded.unfold(1, _FFT, _HOP) @ self._forward

    def synthesise(self, x: Tensor, ends: _Ends) -> Tensor:
        """Log magnitudes and phases to samples. x: [rows, n, _BINS]; returns [rows, 4 (n - 1)]."""
        magnitude, phase = x.split(_BINS // 2, dim=2)
        magnitude = magnitude.exp().clamp(max=_MAX_MAGNITUDE)
        phase = torch.sin(phase)
        spectrum = ends.cut(torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=2), _STEPS_PER_FRAME, 1)
        present = ends.cut(torch.ones_like(x[..., :1]), _STEPS_PER_FRAME, 1)
        signal, overlap = _overlap(spectrum @ self._back), _overlap(present * self._power)
        return (signal / overlap.clamp(min=1e-11)).clamp(-_MAX_SAMPLE, _MAX_SAMPLE)


def _overlap(pieces: Tensor) -> Tensor:
    """Adds pieces of _FFT samples that start every _HOP, and leaves out half a piece at both ends.

    pieces: [rows, n, _FFT]; returns [rows, _HOP (n - 1)].
    """
    parts = pieces.unflatten(2, (-1, _HOP)).unbind(2)  # each [rows, n, _HOP]
    more = len(parts) - 1
    total = torch.stack([F.pad(part, (0, 0, i, more - i)) for i, part in enumerate(parts)]).sum(0)
    return total.flatten(1)[:, _FFT // 2 : -(_FFT // 2)]
