"""Text preparation of Turbo and Nano: GPT-2's byte-pair tokens, and tags like `[laugh]` as tokens of their own.

Source: chatterbox-tts 0.1.7 `tts_turbo.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from chatterbox_engine.errors import CheckpointError
from chatterbox_engine.text.english import REPLACED, Tokens, normalise, spans
from chatterbox_engine.text.passages import Text, is_speakable
from chatterbox_engine.text.tags import TAGS

# Turbo leaves alone what the other models turn into commas.
_KEPT = ("...", " - ", ";")
_REPLACED = tuple(pair for pair in REPLACED if not any(map(pair[0].fullmatch, _KEPT)))


class GPT2Text:
    """`TextPreparation` of Turbo and Nano."""

    def __init__(self, path: Path) -> None:
        """Reads `vocab.json` and the files beside it, as transformers does. Raises CheckpointError."""
        from transformers import AutoTokenizer  # takes seconds

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(path.parent), local_files_only=True)
        except Exception as error:  # transformers raises many kinds, all of them for bad files
            raise CheckpointError(f"{path.parent}: no GPT-2 tokenizer: {error}") from error
        added = self._tokenizer.get_added_vocab()
        self.sounds: Collection[str] = [tag for tag in TAGS if f"[{tag}]" in added]

    def encode(self, text: Text, language: str) -> Tokens:  # noqa: ARG002
        """As upstream's `ChatterboxTurboTTS.generate` prepares a text; there is one language."""
        text = normalise(text, _REPLACED)
        encoded = self._tokenizer(text.string, return_offsets_mapping=True)
        return Tokens(encoded.input_ids, spans(text, encoded.offset_mapping))

    def speaks(self, ids: Sequence[int]) -> bool:
        """See `TextPreparation.speaks`."""
        return is_speakable(self._tokenizer.decode(ids))
