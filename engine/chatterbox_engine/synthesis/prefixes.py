"""Keys and values of voices, which T3's prompts begin with: computed once for a voice and exaggeration, and kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from chatterbox_engine.types import T3Conditionals
from chatterbox_engine.voices.cache import Memo, Voice

PREFIX_BYTES = 512 << 20
"""For all of them: a voice (and exaggeration) takes 37 MB of Turbo's in bfloat16, 14 of Nano's, 4 of English's, and
twice as much in float32."""


class Prefixes:
    """The most recently used prefixes, up to PREFIX_BYTES. Belongs to the engine's thread."""

    def __init__(self, compute: Callable[[T3Conditionals, float], Tensor]) -> None:
        """compute: `Transformer.prefix` of the model."""
        self._compute = compute
        self._kept: Memo[Tensor] = Memo(PREFIX_BYTES, lambda prefix: prefix.nbytes)

    def of(self, voice: Voice, exaggeration: float) -> Tensor:
        """[layers, 2, n, heads, head_dim] on the device. Callers do not keep it, so that the bound holds."""
        return self._kept.get((voice.key, exaggeration), lambda: self._compute(voice.conditionals.t3, exaggeration))
