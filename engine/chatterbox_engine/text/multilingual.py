"""Text preparation of the multilingual models: normalised, decomposed, rewritten in the scripts that need it, marked
with its language, tokenised.

Source: chatterbox-tts 0.1.7 `mtl_tts.py` and `models/tokenizers/tokenizer.py` (`MTLTokenizer`). Hebrew, Japanese,
Russian and Chinese are rewritten by packages that not every machine has. Where one is missing upstream speaks the text
as it is, which is not what the model has learned; here such a language is refused, and the others are spoken.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unicodedata import category

from chatterbox_engine.errors import ConfigError, InvalidRequest
from chatterbox_engine.text.english import Tokenizer, Tokens, normalise
from chatterbox_engine.text.passages import Text
from chatterbox_engine.text.rewriting import Pieces, aligned, decomposed, lowered, rewritten

_ENDINGS = (".", "!", "?", "-", ",", "\u3001", "\uff0c", "\u3002", "\uff1f", "\uff01")

_NEEDED = {
    "he": "the package dicta_onnx and its model",
    "ja": "the package pykakasi",
    "ru": "the package russian_text_stresser",
    "zh": "the package spacy_pkuseg and its model",
}
_log = logging.getLogger(__name__)

Rewrite = Callable[[str], Pieces]


class MultilingualText:
    """`TextPreparation` of the multilingual models."""

    sounds: Collection[str] = ()

    def __init__(self, path: Path, *, cangjie: Path, dicta_model: str = "") -> None:
        """Reads `grapheme_mtl_merged_expanded_v1.json`, and begins to load what the four languages need.

        `cangjie` is where `Cangjie5_TC.json` should be, `dicta_model` the ONNX file of dicta_onnx. Raises
        CheckpointError for the tokenizer; what else is missing is told to the requests that would need it.
        """
        self._tokenizer = Tokenizer(path)
        loaders: dict[str, Callable[[], Rewrite]] = {
            "he": partial(_hebrew, dicta_model),
            "ja": _japanese,
            "ru": _russian,
            "zh": partial(_chinese, cangjie),
        }
        # One thread for all: the Russian package keeps a connection to SQLite, which only the thread that made it may
        # use, and none of them says that two threads may use it at once.
        self._thread = ThreadPoolExecutor(1, "text")
        self._loading = {language: self._thread.submit(_load, language, load) for language, load in loaders.items()}

    def encode(self, text: Text, language: str) -> Tokens:
        """As upstream's `ChatterboxMultilingualTTS.generate` prepares a text.

        Raises InvalidRequest for a language whose package is missing.
        """
        text = decomposed(lowered(normalise(text, endings=_ENDINGS)))
        if language == "ko":  # whose syllables the decomposition has taken apart already
            text = text.strip()
        if language in self._loading:
            text = rewritten(text, self._rewritten(text.string, language))
        if language == "ja":
            text = decomposed(text)
        return self._tokenizer.encode(text.edited([(0, 0, f"[{language}]")]))

    def speaks(self, ids: Sequence[int]) -> bool:
        """See `TextPreparation.speaks`."""
        return self._tokenizer.speaks(ids[1:])  # the first is the language

    def _rewritten(self, text: str, language: str) -> Pieces:
        loading = self._loading[language]
        if error := loading.exception():
            raise InvalidRequest(f"language is {language!r}, which needs {_NEEDED[language]}: {error}")
        return self._thread.submit(loading.result(), text).result()


def _load(language: str, load: Callable[[], Rewrite]) -> Rewrite:
    try:
        return load()
    except Exception as error:
        _log.warning("language %r will be refused, it needs %s: %s", language, _NEEDED[language], error)
        raise


def _hebrew(model: str) -> Rewrite:
    """Adds vowel points. Upstream's `Dicta()` lacks the file that every release of dicta_onnx asks for."""
    from dicta_onnx import Dicta

    if not model:
        raise ConfigError("CHATTERBOX_DICTA_MODEL does not name its ONNX file")
    add_diacritics: Callable[[str], str] = Dicta(model).add_diacritics
    return lambda text: aligned(text, add_diacritics(text))


def _japanese() -> Rewrite:
    """Words that have kanji become hiragana; the particles at the beginning of a word get a space before them."""
    import pykakasi

    convert = pykakasi.kakasi().convert

    def rewrite(text: str) -> Pieces:
        return [(word["orig"], _reading(word["orig"], word["hira"])) for word in convert(text)]

    return rewrite


def _reading(word: str, hiragana: str) -> str:
    if not any("\u4e00" <= char <= "\u9fff" for char in word):
        return word
    return f" {hiragana}" if hiragana.startswith(("\u306f", "\u3078")) else hiragana  # ha, he


def _russian() -> Rewrite:
    """Marks the stressed syllables."""
    from russian_text_stresser.text_stresser import RussianTextStresser

    stress: Callable[[str], str] = RussianTextStresser().stress_text
    return lambda text: aligned(text, stress(text))


def _chinese(cangjie: Path) -> Rewrite:
    """Separates the words and spells every character with its Cangjie keys."""
    if not cangjie.is_file():
        raise ConfigError(f"the checkpoint has no {cangjie.name}")
    spelling = _spelling(cangjie)
    from spacy_pkuseg import pkuseg

    cut = pkuseg().cut  # downloads its model when it is not there

    def rewrite(text: str) -> Pieces:
        words = ([(char, spelling.get(char, char)) for char in word] for word in cut(text))
        return [piece for number, word in enumerate(words) for piece in ([("", " ")] * bool(number) + word)]

    return rewrite


def _spelling(path: Path) -> dict[str, str]:
    """The tokens of every character: its keys, and a number where others before it have the same ones."""
    keys: dict[str, str] = {}
    sharing: defaultdict[str, list[str]] = defaultdict(list)
    for entry in json.loads(path.read_text(encoding="utf-8")):
        character, code = entry.split("\t")[:2]
        keys[character] = code
        sharing[code].append(character)
    spelling = {}
    for character, code in keys.items():
        if len(character) == 1 and category(character) == "Lo":
            number = sharing[code].index(character)
            spelling[character] = "".join(f"[cj_{key}]" for key in f"{code}{number or ''}.")
    return spelling
