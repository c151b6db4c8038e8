"""Which thread may use how many cores of a CPU. On a GPU nothing here does anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cores:
    """Threads of each network on a CPU: beside the other network, and alone. None leaves torch's number as it is.

    torch's number belongs to the calling thread, and to threads that are started later.
    """

    vocoder: tuple[int, int] | None = None
    t3: tuple[int, int] | None = None

    def use_for_t3(self, *, alone: bool) -> None:
        """Before a step, on its thread. alone: the vocoder has nothing to do."""
        if self.t3 is not None:
            torch.set_num_threads(self.t3[alone])

    def use_for_vocoder(self, *, alone: bool) -> None:
        """Before a batch, on its thread. alone: all tokens of all requests are drawn."""
        if self.vocoder is not None:
            torch.set_num_threads(self.vocoder[alone])

    def use_for_finisher(self) -> None:
        """When a finisher's thread starts."""
        self.use_for_vocoder(alone=False)

    def release(self) -> None:
        """When the calling thread's network has nothing to do: its idle threads would slow down the other network's."""
        if self.vocoder is not None:
            from chatterbox_engine.kernels.cpu.launch import release_threads  # on a CPU only: it imports numba

            release_threads()
