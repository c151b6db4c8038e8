"""The inputs that each family refuses, and the ends of utterances."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_engine.checkpoint.families import (
    FAMILIES,
    MULTILINGUAL_V3,
    TURBO,
    Family,
)
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.serving import contract
from chatterbox_engine.synthesis.jobs import Job, TokenSegment
from chatterbox_engine.synthesis.streaming import LOOKAHEAD, ChunkPolicy, Cursor, Span
from chatterbox_engine.synthesis.utterances import Speech, Utterance
from chatterbox_engine.types import SPEECH_TOKENS, SynthesisRequest
from chatterbox_engine.voices.library import Found
from tests.unit.engine_fakes import voice

families = pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])


def parse(family: Family, **inputs: Any) -> Any:
    tensors = {name: np.array([[value]]) for name, value in {"text": "Hello.", **inputs}.items()}
    return contract.parse(tensors, contract.Terms(max_text_chars=100, max_seconds=10.0, family=family)).request


@families
def test_every_input_that_a_family_does_not_heed_is_refused_by_name(family: Family) -> None:
    assert parse(family).sampling == family.sampling
    for name, limits in contract.SAMPLING.items():
        if name in family.inputs:
            assert getattr(parse(family, **{name: limits.high}).sampling, name) == limits.high
        else:
            with pytest.raises(InvalidRequest, match=rf"{name} has no effect on {family.title}, which supports"):
                parse(family, **{name: limits.high})


@families
def test_a_language_that_a_family_does_not_speak_is_refused(family: Family) -> None:
    for language in MULTILINGUAL_V3.languages:
        if language in family.languages:
            assert parse(family, language=language.upper()).language == language
        else:
            with pytest.raises(InvalidRequest, match=rf"language is '{language}'; {family.title} speaks en"):
                parse(family, language=language)


def test_a_request_that_names_no_language_is_in_the_familys() -> None:
    pack = replace(MULTILINGUAL_V3, language="pt")
    assert parse(pack).language == "pt"
    assert parse(pack, language="es").language == "es"
    assert parse(MULTILINGUAL_V3).language == "en"


def utterance(family: Family, drawn: list[int]) -> Utterance:
    request = SynthesisRequest("Hello.", 1, sampling=family.sampling)
    job = Job(1, request, lambda _answer: None, [TokenSegment((), prompt_length=10, max_tokens=100, pause=0.0)])
    (it,) = Speech(job, Found(voice("default"), "memory"), 0.0, family).utterances
    for token in drawn:
        it.take(token, SPEECH_TOKENS + 1)
    return it


def test_turbo_speaks_three_tokens_of_silence_at_the_end() -> None:
    spoken = utterance(TURBO, [1, 2, SPEECH_TOKENS, 3, SPEECH_TOKENS + 1])
    assert spoken.tokens == [1, 2, 3, 4299, 4299, 4299]
    assert spoken.whole == Span(0, 0, 6, 6, last=True)
    assert len(spoken.row_positions) == 1


@pytest.mark.parametrize(("drawn", "heard"), [(0, 0), (1, 1), (2, 1), (30, 29)])
def test_the_last_token_of_multilingual_speech_is_not_heard(drawn: int, heard: int) -> None:
    spoken = utterance(MULTILINGUAL_V3, [*range(drawn), SPEECH_TOKENS + 1])
    assert spoken.whole == Span(0, 0, heard, drawn, last=True)
    assert len(spoken.row_positions) == 2


@pytest.mark.parametrize("tokens", range(0, 60, 3))
def test_chunks_hear_what_the_whole_utterance_hears(tokens: int) -> None:
    cursor, heard = Cursor(ChunkPolicy(5, 7), MULTILINGUAL_V3.cropped), 0
    while True:
        span = cursor.take(tokens, complete=True)
        assert span is not None
        assert (span.begin, span.stop <= tokens) == (heard, True)
        heard = span.end
        if span.last:
            break
    assert heard == Span.whole(tokens, MULTILINGUAL_V3.cropped).end
    assert MULTILINGUAL_V3.cropped <= LOOKAHEAD


def test_the_data_imports_no_torch() -> None:
    program = "import sys, chatterbox_engine.serving.contract; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent)
