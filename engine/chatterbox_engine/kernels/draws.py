"""Random numbers that are a function of a seed and an index alone: a batch draws them all at once, on the device.

They are SplitMix64's (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), whose n-th is a
hash of the seed and n times a constant.
"""

from __future__ import annotations

from torch import Tensor


def signed(number: int) -> int:
    """The 64-bit number with these bits, as torch's integers have it."""
    return (number + 2**63) % 2**64 - 2**63


STEP = signed(0x9E3779B97F4A7C15)
"""What the n-th number's hash adds n times to the seed."""

_FIRST, _SECOND = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)
_FRACTION = 2**24


def mixed(number: Tensor) -> Tensor:
    """SplitMix64's hash of 64-bit numbers. Products wrap around; shifts fill with the sign, which is masked away."""
    number = (number ^ ((number >> 30) & (2**34 - 1))) * _FIRST
    number = (number ^ ((number >> 27) & (2**37 - 1))) * _SECOND
    return number ^ ((number >> 31) & (2**33 - 1))


def fraction(bits: Tensor) -> Tensor:
    """The lowest 24 bits as a number of [0, 1), exact in float32."""
    return (bits & (_FRACTION - 1)).float() / _FRACTION


def uniforms(seeds: Tensor, indices: Tensor) -> Tensor:
    """Numbers of [0, 1): float32, of the shape that both int64 tensors broadcast to."""
    return fraction(mixed(mixed(seeds) + STEP * indices))
