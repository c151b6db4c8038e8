"""Upstream's own guard of Multilingual, token by token.

Source: chatterbox-tts 0.1.7 `models/t3/inference/alignment_stream_analyzer.py`, `AlignmentStreamAnalyzer.step`. What it
does before a token is drawn, holding the stop token back before the text's end, is done on the device (`t3.alignment`);
what ends the speech is decided here, a step later, when the token that was drawn instead is dropped. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chatterbox_engine.types import Reading

BACK, ON = -4, 7
"""The place may move by more than the first and by less than the second, else it is a discontinuity."""
LAST = 3
"""Tokens at the text's end, in which the speech is taken to be complete."""
TOO_MUCH = 5.0
"""Attention, summed over steps, on one of the last tokens, or on earlier ones, after the text is complete."""


@dataclass
class Analyser:
    """One run of an utterance. Belongs to the engine's thread."""

    places: int
    """Tokens of the text, start and stop included."""
    _place: int = 0
    _complete: bool = False
    _tail: list[float] = field(default_factory=lambda: [0.0] * LAST)
    _again: float = 0.0
    _drawn: list[int] = field(default_factory=list)
    """The last two tokens."""

    def ends(self, token: int, reading: Reading | None) -> bool:
        """Whether upstream draws a stop token in the step that has drawn `token` here. reading: of the step; None for
        the prefill, whose attention changes nothing."""
        if reading is not None and self._complete:
            self._again += reading.earlier
            ends = (reading.third_last, reading.second_last, reading.last)
            self._tail = [total + here for total, here in zip(self._tail, ends, strict=True)]
        place = 0 if reading is None else int(reading.strict)
        if BACK < place - self._place < ON:
            self._place = place
        repeated = len(self._drawn) == 2 and self._drawn[0] == self._drawn[1]
        ends_now = max(self._tail) >= TOO_MUCH or self._again > TOO_MUCH or repeated
        self._complete = self._complete or self._place >= self.places - LAST
        self._drawn = [*self._drawn, token][-2:]
        return ends_now
