"""Turbo's and Nano's text: normalised and tokenised as upstream's `ChatterboxTurboTTS` does it."""

from __future__ import annotations

from typing import Any

import pytest

from chatterbox_engine.text.gpt2 import GPT2Text
from chatterbox_engine.text.passages import Text
from tests.conftest import CheckpointOf
from tests.fidelity.test_text import TABLE
from tests.unit.test_text import SILENT

TAGS = ("Oh [laugh] well... yes; no - maybe.", "[clear throat] Hello", "[sigh][cough]", "so [not a tag] it goes")


@pytest.fixture(scope="module")
def both(checkpoint_of: CheckpointOf) -> tuple[GPT2Text, Any]:
    from transformers import AutoTokenizer

    path = checkpoint_of("tiny-turbo").tokenizer_path
    return GPT2Text(path), AutoTokenizer.from_pretrained(path.parent)


@pytest.mark.parametrize("text", [*TABLE, *TAGS], ids=lambda text: ascii(text[:24]))
def test_tokens_equal_upstreams(text: str, both: tuple[GPT2Text, Any]) -> None:
    from chatterbox.tts_turbo import punc_norm

    ours, theirs = both
    assert ours.encode(Text.of(text), "en").ids == theirs(punc_norm(text)).input_ids


def test_a_tag_is_something_to_speak_and_what_has_no_letter_is_not(both: tuple[GPT2Text, Any]) -> None:
    text, _ = both
    assert all(
        text.speaks(text.encode(Text.of(words), "en").ids) for words in ("Hello.", "[laugh]", "...42", "\U0001f600 Hi")
    )
    assert not any(text.speaks(text.encode(Text.of(silent), "en").ids) for silent in SILENT)


def test_a_tag_is_one_token_behind_the_vocabulary(both: tuple[GPT2Text, Any], checkpoint_of: CheckpointOf) -> None:
    vocabulary = checkpoint_of("tiny-turbo").dims.t3.text_vocab
    ids = both[0].encode(Text.of("[laugh]"), "en").ids
    assert [number for number in ids if number >= vocabulary - 9] == [vocabulary - 9]
    assert max(ids) < vocabulary


def test_each_token_leads_back_to_its_letters(both: tuple[GPT2Text, Any]) -> None:
    text = "so [laugh] it\u2019s caf\u00e9 \U0001f600"
    tokens = both[0].encode(Text.of(text), "en")
    assert len(tokens.spans) == len(tokens.ids)
    assert tokens.spans == sorted(tokens.spans)
    assert (3, 10) in tokens.spans
    led = {at for start, end in tokens.spans for at in range(start, end)}
    assert led >= {at for at, char in enumerate(text) if not char.isspace()}
