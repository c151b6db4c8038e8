"""How much of a GPU's memory an engine may plan with: the setting `gpu_memory`. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chatterbox_engine.errors import ConfigError

_AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>|[KMGT]i?B)")
_UNITS = {"": 1} | {
    f"{letter}{infix}B": base**power
    for power, letter in enumerate("KMGT", 1)
    for infix, base in (("", 1000), ("i", 1024))
}


@dataclass(frozen=True)
class GpuShare:
    """A part of a GPU's memory."""

    fraction: float | None = None
    """Of all of it."""
    amount: int | None = None
    """Bytes."""

    @classmethod
    def parse(cls, text: str) -> GpuShare:
        """`0.5` is a fraction, `20GB`, `16GiB` and numbers above 1 are bytes, nothing is all of the memory.

        Raises ConfigError.
        """
        if not text:
            return cls()
        match = _AMOUNT.fullmatch(text)
        number = float(match["number"]) if match else 0.0
        if match is None or number == 0:
            raise ConfigError(f"gpu_memory is {text!r}; it must be a fraction such as 0.5, or an amount such as 20GB")
        if not match["unit"] and number <= 1:
            return cls(fraction=number)
        return cls(amount=int(number * _UNITS[match["unit"]]))

    def bytes_of(self, total: int) -> int:
        """Its bytes, of a GPU with `total`."""
        if self.fraction is not None:
            return int(total * self.fraction)
        return total if self.amount is None else min(total, self.amount)


ALL = GpuShare()
