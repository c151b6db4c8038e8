"""Words of a request's text, and which of a segment's tokens speak each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chatterbox_engine.text.passages import CharSpan, is_speakable

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""Characters of scripts without spaces (Thai, Lao, Burmese, Khmer, kana, Han): each begins a word."""


@dataclass(frozen=True)
class Word:
    """A run of characters that ends at white space, with its punctuation."""

    span: CharSpan
    """Of the request's text."""
    first: int
    """Of the segment's tokens, the first one that is spoken for it."""
    after: int
    """The token after its last one that is spoken."""


def words_of(source: str, spans: Sequence[CharSpan]) -> list[Word]:
    """The words of a segment, in the order in which they are spoken.

    source: the request's text; spans: [tokens] the characters that each token stands for. Words for which nothing is
    spoken are left out, and so is what stands between words.
    """
    return [
        Word((min(start for _, (start, _) in run), max(end for _, (_, end) in run)), spoken[0], spoken[-1] + 1)
        for run in _runs(source, spans)
        if (spoken := [index for index, (start, end) in run if is_speakable(source[start:end])])
    ]


def _runs(source: str, spans: Sequence[CharSpan]) -> Iterator[list[tuple[int, CharSpan]]]:
    """Neighbouring tokens that no white space of the source separates, each with its characters but white space at
    their edges."""
    tokens = [(index, _stripped(source, span)) for index, span in enumerate(spans)]
    shown = [(index, span) for index, span in tokens if span[0] < span[1]]
    if not shown:
        return
    run = [shown[0]]
    for (_, (_, before)), (index, (start, end)) in pairwise(shown):
        apart = any(map(str.isspace, source[before:start])) or _unspaced(source, [run[0], (index, (start, end))])
        if apart and start >= max(last for _, (_, last) in run):
            yield run
            run = []
        run.append((index, (start, end)))
    yield run


def _stripped(source: str, span: CharSpan) -> CharSpan:
    part = source[slice(*span)]
    start = span[0] + len(part) - len(part.lstrip())
    return start, max(start, span[0] + len(part.rstrip()))


def _unspaced(source: str, tokens: Sequence[tuple[int, CharSpan]]) -> bool:
    """Whether the last token is spoken, and some of the tokens are of a script without spaces."""
    parts = [source[slice(*span)] for _, span in tokens]
    return is_speakable(parts[-1]) and any(map(_UNSPACED.match, parts))
