"""The way back from tokens to the characters of a request's text."""

from __future__ import annotations

from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.families import ENGLISH
from chatterbox_engine.synthesis.segments import Segmenter
from chatterbox_engine.text.english import EnglishText, normalise
from chatterbox_engine.text.passages import Text
from chatterbox_engine.text.rewriting import aligned, decomposed, lowered, rewritten
from chatterbox_engine.types import SynthesisRequest


@pytest.fixture(scope="module")
def segmenter(tiny: Checkpoint) -> Segmenter:
    return Segmenter(EnglishText(tiny.tokenizer_path), tiny.dims.t3, 300, ENGLISH)


def test_each_token_of_a_segment_leads_back_to_the_request_s_text(segmenter: Segmenter) -> None:
    text = "**Pay** $5 at 10:30. [pause 1s] Then go"
    request = SynthesisRequest(text, seed=1, text_normalization="spoken", markup="auto")
    first, second = segmenter.segments(request).segments
    for segment in (first, second):
        assert len(segment.spans) == len(segment.tokens)
        assert list(segment.spans) == sorted(segment.spans)
    parts = list(dict.fromkeys(text[start:end] for start, end in first.spans))
    assert "$5" in parts, "five dollars"
    assert "10:30" in parts
    assert "pause" not in "".join(parts)
    assert first.spans[0] == (2, 2), "the start token stands for nothing"
    assert second.spans[-1] == (len(text), len(text)), "nor do an added full stop and the stop token"
    assert "".join(dict.fromkeys(text[start:end] for start, end in second.spans)) == "Then go"


@given(st.text())
def test_a_normalised_text_leads_back_to_its_source(source: str) -> None:
    text = normalise(Text.of(source))
    assert len(text.string) == len(text.starts) == len(text.ends)
    for char, start, end in zip(text.string, text.starts, text.ends, strict=True):
        assert not char.isalnum() or end - start != 1 or char in source[start] or char in source[start].upper()


@given(st.text("aI\u0130\u03a3\u00e9\u1ec7\ud55c\u304c\u0301\u0323 .\ufb01", max_size=12))
def test_a_changed_text_is_what_python_makes_of_the_string_and_leads_back_to_its_source(source: str) -> None:
    assert lowered(Text.of(source)).string == source.lower()
    text = decomposed(lowered(Text.of(source)))
    assert text.string == normalize("NFKD", source.lower())
    for char, start, end in zip(text.string, text.starts, text.ends, strict=True):
        assert char in normalize("NFKD", source[start:end].lower()) or char in "\u03c2\u03c3"


@given(st.text("ab .", max_size=12), st.text("abc .", max_size=16))
def test_a_rewritten_text_is_the_package_s(source: str, other: str) -> None:
    assert rewritten(Text.of(source), aligned(source, other)).string == other


@given(st.lists(st.tuples(st.text("ab ", max_size=3), st.text("abc ", max_size=3)), max_size=6), st.text("ab "))
def test_pieces_that_are_not_of_the_text_are_spoken_all_the_same(pieces: list[tuple[str, str]], source: str) -> None:
    text = rewritten(Text.of(source), pieces)
    assert text.string == "".join(new for _, new in pieces)
    assert list(text.starts) == sorted(text.starts)


def test_marks_that_a_package_adds_belong_to_their_letters() -> None:
    source = "\u043c\u043e\u043b\u043e\u043a\u043e"
    text = rewritten(Text.of(source), aligned(source, f"{source}\u0301"))
    assert text.source(0, 1) == (0, 1)
    assert text.source(5, 6) == (5, 6)
    assert text.source(6, 7) == (6, 6)
