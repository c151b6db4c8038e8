"""What surrounds Flash's T3, from text to tokens and from tokens to the vocoder, against chatterbox-flash 0.1.0."""

from __future__ import annotations

import pytest
import torch

from chatterbox_engine.checkpoint.families import FLASH
from chatterbox_engine.synthesis.jobs import Job, TokenSegment
from chatterbox_engine.synthesis.utterances import Speech
from chatterbox_engine.t3.schedule import counts
from chatterbox_engine.text.english import FlashText
from chatterbox_engine.text.passages import Text
from chatterbox_engine.types import SynthesisRequest
from chatterbox_engine.voices.library import Found
from tests.conftest import CheckpointOf
from tests.fidelity import upstream
from tests.unit.engine_fakes import voice

TEXTS = (
    "Nobody was there to see them.",
    "  Mr. Hill paid $12.50 at 10:30, or so - he said: twice!  ",
    "In 1999 there were 1,234 boats; 15% of them leaked...",
    "Call 555-1234",
    "lower case, and no full stop",
)
# as of `_trim_to_eos`: masks, tokens that are no speech, and what comes after the stop token
ENDS = ([5, 6562, 7], [8194, 1, 8194, 2, 6562, 8194], [6561, 3, 6600, 4], [6562], [1, 2, 3])
pytestmark = pytest.mark.filterwarnings("ignore:.*LoRACompatibleLinear:FutureWarning")


def test_a_texts_tokens_and_the_longest_speech_of_it_are_upstreams(checkpoint_of: CheckpointOf) -> None:
    from chatterbox_flash.tts import _speech_len_for_text_tokens

    checkpoint = checkpoint_of("tiny-flash")
    theirs, ours = upstream.flash(checkpoint), FlashText(checkpoint.tokenizer_path)
    assert FLASH.budget is not None
    for text in TEXTS:
        framed = checkpoint.dims.t3.frame(ours.encode(Text.of(text), "en").ids)
        assert framed == theirs._encode_text(text)[0].tolist()
        assert FLASH.budget.of(len(framed)) == _speech_len_for_text_tokens(len(framed))
    assert FLASH.budget.of(200) == _speech_len_for_text_tokens(200) == 1200


@pytest.mark.parametrize("drawn", ENDS)
def test_the_tokens_that_reach_the_vocoder_are_upstreams(drawn: list[int], checkpoint_of: CheckpointOf) -> None:
    request = SynthesisRequest("Hello.", 1, sampling=FLASH.sampling)
    job = Job(1, request, lambda _answer: None, [TokenSegment((), prompt_length=10, max_tokens=len(drawn), pause=0.0)])
    (utterance,) = Speech(job, Found(voice("default"), "memory"), 0.0, FLASH).utterances
    assert any(utterance.take(token, 6562) for token in drawn)
    assert utterance.tokens == upstream.flash(checkpoint_of("tiny-flash"))._trim_to_eos(torch.tensor(drawn)).tolist()


def test_the_schedule_is_upstreams() -> None:
    from chatterbox_flash.model import _omnivoice_unmask_schedule

    for tokens in range(1, 17):
        for steps in (1, 2, 5, 10, 16, 32):
            for shift in (0.0, 0.1, 0.5, 1.0, 2.5, 10.0):
                assert list(counts(tokens, steps, shift)) == _omnivoice_unmask_schedule(tokens, steps, shift)
