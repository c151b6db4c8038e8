"""Text preparation of the multilingual models: normalised, decomposed, marked with its language, tokenised.

Source: chatterbox-tts 0.1.7 `mtl_tts.py` and `models/tokenizers/tokenizer.py` (`MTLTokenizer`).
"""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.text import Tokenizer, normalise

_ENDINGS = (".", "!", "?", "-", ",", "\u3001", "\uff0c", "\u3002", "\uff1f", "\uff01")

_UNPREPARED = ("he", "ja", "ru", "zh")
"""Languages whose script is rewritten for the model, which is not here yet."""


class MultilingualText:
    """`TextPreparation` of the multilingual models."""

    def __init__(self, path: Path) -> None:
        """Reads `grapheme_mtl_merged_expanded_v1.json`. Raises CheckpointError."""
        self._tokenizer = Tokenizer(path)

    def encode(self, text: str, language: str) -> list[int]:
        """As upstream's `ChatterboxMultilingualTTS.generate` prepares a text. Raises InvalidRequest."""
        if language in _UNPREPARED:
            raise InvalidRequest(f"language is {language!r}, whose text cannot be prepared yet")
        text = normalize("NFKD", normalise(text, endings=_ENDINGS).lower())
        if language == "ko":  # whose syllables the decomposition has taken apart already
            text = text.strip()
        return self._tokenizer.encode(f"[{language}]{text}")
