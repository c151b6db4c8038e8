"""A request's text as the segments that T3 speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chatterbox_engine.checkpoint.dims import T3Dims
from chatterbox_engine.checkpoint.families import Family
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.synthesis.jobs import TokenSegment
from chatterbox_engine.text.english import TextPreparation, Tokens
from chatterbox_engine.text.lexicon_file import LexiconFile
from chatterbox_engine.text.pipeline import Reader, Script, Segment
from chatterbox_engine.types import TOKENS_PER_SECOND, SynthesisRequest


@dataclass(frozen=True)
class Segmented:
    """A request's segments, at least one, and what was left out of its text."""

    segments: Sequence[TokenSegment]
    notes: Sequence[str] = ()


class Segmenter:
    """Splits, tokenises and measures texts. Any thread."""

    def __init__(
        self, text: TextPreparation, dims: T3Dims, max_chars: int, family: Family, lexicons: LexiconFile | None = None
    ) -> None:
        """max_chars: of a segment; lexicons: None has no entries."""
        self._text = text
        self._dims = dims
        self._family = family
        self._reader = Reader(family.languages, text.sounds, family.title, max_chars, lexicons or LexiconFile())

    def read(self, request: SynthesisRequest) -> Script:
        """What is spoken of the request's text, stage by stage. Raises InvalidRequest."""
        return self._reader.read(request)

    def segments(self, request: SynthesisRequest) -> Segmented:
        """The request's segments that have something to speak.

        Raises InvalidRequest for markup that is wrong, a text that cannot fit or of which the model knows no letter.
        """
        script = self.read(request)
        # rounded down: max_seconds is a bound; the small addend keeps 0.28 s, whose product is 6.999..., at 7 tokens
        max_tokens = max(1, int(request.max_seconds * TOKENS_PER_SECOND + 1e-4))
        lead = script.lead
        segments: list[TokenSegment] = []
        for segment in script.segments:
            tokens = self._tokens(segment)
            if tokens is not None:
                segments.append(self._measured(tokens, max_tokens, segment, 0.0 if segments else lead))
            elif segment.ends_passage and segments:
                last = segments[-1]
                segments[-1] = replace(last, pause=max(last.pause, segment.pause * last.rate))
            elif segment.ends_passage:
                lead += segment.pause
        if not segments:
            title = self._family.title
            raise InvalidRequest(f"text has nothing to speak: {title} knows none of its letters and digits")
        return Segmented(tuple(segments), script.notes)

    def _tokens(self, segment: Segment) -> Tokens | None:
        """None where the model knows nothing to speak. Raises InvalidRequest for a segment that cannot fit."""
        tokens = self._text.encode(segment.text, segment.language)
        if not self._text.speaks(tokens.ids):
            return None
        number = len(tokens.ids)
        if number > self._dims.max_text_tokens:
            raise InvalidRequest(f"a sentence has {number} text tokens; the model takes {self._dims.max_text_tokens}")
        return tokens

    def _measured(self, text: Tokens, max_tokens: int, segment: Segment, lead: float) -> TokenSegment:
        before, after = self._dims.text_frame
        tokens = (*before, *text.ids, *after)
        if (budget := self._family.budget) is not None:
            max_tokens = min(max_tokens, budget.of(len(tokens)))
        spans = text.spans or [(0, 0)]
        first, last = spans[0][0], spans[-1][1]
        return TokenSegment(
            tokens,
            prompt_length=self._dims.prefix + len(tokens) + self._dims.bos,
            max_tokens=min(max_tokens, self._dims.max_speech_tokens),
            pause=segment.pause * segment.rate,
            lead=lead * segment.rate,
            rate=segment.rate,
            spans=(*[(first, first)] * len(before), *text.spans, *[(last, last)] * len(after)),
        )
