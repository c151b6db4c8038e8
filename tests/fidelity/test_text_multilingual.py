# ruff: noqa: RUF001 - letters and punctuation of other languages are the point
"""The languages whose text needs no package: prepared as upstream's `ChatterboxMultilingualTTS` does it."""

from __future__ import annotations

from typing import Any

import pytest

from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.families import MULTILINGUAL_V3
from chatterbox_engine.languages import MultilingualText
from tests.conftest import CheckpointOf

SENTENCES = {
    "ar": "مرحبا، كيف حالك اليوم؟",
    "da": "Rødgrød med fløde, på en søndag",
    "de": "Übermäßig große Straße… „wirklich“?",
    "el": "Καλημέρα, τι κάνετε σήμερα;",
    "en": "Hello there - how are you: fine?",
    "es": "¿Cómo estás? ¡Muy bien, señor!",
    "fi": "Hyvää päivää, mitä kuuluu",
    "fr": "Ça va très bien, merci ; l’été est là…",
    "hi": "नमस्ते, आप कैसे हैं?",
    "it": "Perché no? Così è più facile",
    "ko": "안녕하세요, 오늘 어떠세요?",
    "ms": "Selamat pagi, apa khabar",
    "nl": "Eén ding: ’s avonds regent het",
    "no": "Blåbærsyltetøy på skiva!",
    "pl": "Zażółć gęślą jaźń—dobrze",
    "pt": "Coração, amanhã não há aula。",
    "sv": "Räksmörgås på fjället，ja",
    "sw": "Habari za asubuhi rafiki",
    "tr": "İyi günler, nasılsınız? Çok güzel",
}


@pytest.fixture(scope="module")
def both(checkpoint_of: CheckpointOf) -> tuple[MultilingualText, Any]:
    from chatterbox.models.tokenizers import tokenizer

    path = checkpoint_of("tiny-multilingual").tokenizer_path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "ChineseCangjieConverter", lambda _folder: None)  # it downloads a model
        return MultilingualText(path), tokenizer.MTLTokenizer(str(path))


@pytest.mark.parametrize("language", SENTENCES)
def test_tokens_equal_upstreams(language: str, both: tuple[MultilingualText, Any]) -> None:
    from chatterbox.mtl_tts import punc_norm

    ours, theirs = both
    for text in (SENTENCES[language], SENTENCES[language].upper(), f"  {SENTENCES[language]}  1, 2, 3.. "):
        expected = theirs.text_to_tokens(punc_norm(text), language_id=language)[0].tolist()
        assert ours.encode(text, language) == expected


def test_a_language_that_cannot_be_prepared_is_refused(both: tuple[MultilingualText, Any]) -> None:
    for language in set(MULTILINGUAL_V3.languages) - set(SENTENCES):
        with pytest.raises(InvalidRequest, match=f"language is '{language}'"):
            both[0].encode("Hello.", language)
