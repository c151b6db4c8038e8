"""A request's text as the segments that T3 speaks."""

from __future__ import annotations

from chatterbox_engine.checkpoint.dims import T3Dims
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.synthesis.jobs import TokenSegment
from chatterbox_engine.text.english import TextPreparation, split
from chatterbox_engine.types import TOKENS_PER_SECOND, SynthesisRequest


class Segmenter:
    """Splits, tokenises and measures texts. Any thread."""

    def __init__(self, text: TextPreparation, dims: T3Dims, max_chars: int, model: str) -> None:
        """max_chars: of a segment; model: what messages call it."""
        self._text = text
        self._dims = dims
        self._max_chars = max_chars
        self._model = model

    def segments(self, request: SynthesisRequest) -> tuple[TokenSegment, ...]:
        """The request's segments that have something to speak, at least one.

        Raises InvalidRequest for a text that cannot fit or of which the model knows no letter.
        """
        dims = self._dims
        # rounded down: max_seconds is a bound; the small addend keeps 0.28 s, whose product is 6.999..., at 7 tokens
        max_tokens = max(1, int(request.max_seconds * TOKENS_PER_SECOND + 1e-4))
        segments = []
        for segment in split(request.text, self._max_chars):
            ids = self._text.encode(segment.text, request.language)
            if not self._text.speaks(ids):
                continue
            if len(ids) > dims.max_text_tokens:
                raise InvalidRequest(f"a sentence has {len(ids)} text tokens; the model takes {dims.max_text_tokens}")
            tokens = tuple(dims.frame(ids))
            prompt_length = dims.prefix + len(tokens) + dims.bos
            limit = min(max_tokens, dims.max_speech_tokens)
            segments.append(TokenSegment(tokens, prompt_length, limit, segment.pause))
        if not segments:
            raise InvalidRequest(f"text has nothing to speak: {self._model} knows none of its letters and digits")
        return tuple(segments)
