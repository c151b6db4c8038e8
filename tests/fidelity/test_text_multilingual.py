"""The text of all 23 languages, prepared as upstream's `ChatterboxMultilingualTTS` does it.

Japanese is compared through the real pykakasi. The packages of Hebrew, Russian and Chinese need models that cannot be
fetched where tests run: upstream's functions and ours both call small stand-ins for them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import count
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any
from unicodedata import category, normalize

import pytest

from chatterbox_engine.checkpoint.families import CANGJIE, MULTILINGUAL_V3
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.text.multilingual import MultilingualText
from chatterbox_engine.text.passages import Text
from tests.conftest import CheckpointOf


def read(path: Path) -> dict[str, list[str]]:
    """Sentences by language: lines under a heading."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            sentences = found[line.strip("[]")] = []
        else:
            sentences.append(line)
    return found


SENTENCES = read(Path(__file__).with_name("sentences.txt"))
PACKAGES = {"he": "dicta_onnx", "ja": "pykakasi", "ru": "russian_text_stresser", "zh": "spacy_pkuseg"}


def test_there_are_twenty_sentences_of_every_language() -> None:
    assert list(SENTENCES) == list(MULTILINGUAL_V3.languages)
    assert {language: len(set(sentences)) for language, sentences in SENTENCES.items()} == dict.fromkeys(SENTENCES, 20)


class Dicta:
    """Stands for dicta_onnx's class: a patah behind every letter."""

    def __init__(self, model_path: str = "") -> None:  # upstream names no model
        pass

    def add_diacritics(self, text: str) -> str:
        return "".join(f"{char}\N{HEBREW POINT PATAH}" if "\u05d0" <= char <= "\u05ea" else char for char in text)


class RussianTextStresser:
    """Stands for the class of that name: an acute on the first vowel of every word. As its dictionary it can be used by
    the thread that made it only."""

    def __init__(self) -> None:
        import sqlite3

        self._dictionary = sqlite3.connect(":memory:")

    def stress_text(self, text: str) -> str:
        self._dictionary.execute("SELECT 1")
        return " ".join(map(self._stress, text.split(" ")))

    def _stress(self, word: str) -> str:
        places = [place + 1 for place, char in enumerate(word) if char in "аеиоуыэюя"]
        return f"{word[: places[0]]}\N{COMBINING ACUTE ACCENT}{word[places[0] :]}" if places else word


class Segmenter:
    """Stands for spacy_pkuseg's class: words of two characters, without the spaces between."""

    def cut(self, text: str) -> list[str]:
        return [piece[start : start + 2] for piece in text.split() for start in range(0, len(piece), 2)]


def stand_in(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def write_cangjie(path: Path) -> None:
    """A table of most characters in the sentences, in which many share their keys, and of punctuation, which upstream
    does not look up."""
    characters = sorted({char for text in SENTENCES["zh"] for char in normalize("NFKD", text)})
    known = [char for number, char in enumerate(characters) if number % 10]
    entries = [f"{char}\t{'abcdefg'[number % 7]}{'ru'[number % 2]}\t{number}" for number, char in enumerate(known)]
    assert {category(char) for char in known} > {"Lo", "Po"}
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def both(
    checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[MultilingualText, Any]]:
    """Our preparation and upstream's."""
    from chatterbox.models.tokenizers import tokenizer

    cangjie = tmp_path_factory.mktemp("text") / CANGJIE
    write_cangjie(cangjie)
    path = checkpoint_of("tiny-multilingual").tokenizer_path
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dicta_onnx", stand_in("dicta_onnx", Dicta=Dicta))
        package, module = "russian_text_stresser", "russian_text_stresser.text_stresser"
        patch.setitem(sys.modules, package, stand_in(package))
        patch.setitem(sys.modules, module, stand_in(module, RussianTextStresser=RussianTextStresser))
        patch.setattr("spacy_pkuseg.pkuseg", Segmenter)
        patch.setattr(tokenizer, "hf_hub_download", lambda **_which: str(cangjie))
        for name in ("_dicta", "_kakasi", "_russian_stresser"):
            patch.setattr(tokenizer, name, None)
        yield MultilingualText(path, cangjie=cangjie, dicta_model="dicta.onnx"), tokenizer.MTLTokenizer(str(path))


@pytest.mark.parametrize("language", SENTENCES)
def test_tokens_equal_upstreams(language: str, both: tuple[MultilingualText, Any]) -> None:
    from chatterbox.mtl_tts import punc_norm

    ours, theirs = both
    for sentence in SENTENCES[language]:
        for text in (sentence, sentence.upper(), f"  {sentence}  1, 2, 3.. "):
            expected = theirs.text_to_tokens(punc_norm(text), language_id=language)[0].tolist()
            assert ours.encode(Text.of(text), language).ids == expected, text


@pytest.mark.parametrize("language", SENTENCES)
def test_the_tokens_tell_whether_there_is_something_to_speak(language: str, both: tuple[MultilingualText, Any]) -> None:
    text, _ = both
    for sentence in SENTENCES[language]:
        assert text.speaks(text.encode(Text.of(sentence), language).ids), sentence
    for silent in ("...", "\u061f", "\u0964", "\u3002", "\N{THUMBS UP SIGN}", "\N{COMBINING ACUTE ACCENT}", "- - -"):
        assert not text.speaks(text.encode(Text.of(silent), language).ids), silent


@pytest.mark.parametrize("language", SENTENCES)
def test_each_token_leads_back_to_its_letters(language: str, both: tuple[MultilingualText, Any]) -> None:
    text, _ = both
    for sentence in SENTENCES[language]:
        tokens = text.encode(Text.of(f"  {sentence}"), language)
        assert len(tokens.spans) == len(tokens.ids)
        assert tokens.spans == sorted(tokens.spans, key=itemgetter(0))
        assert tokens.spans[0] == (2, 2), "the language's token stands for nothing"
        led = {at - 2 for start, end in tokens.spans for at in range(start, end)}
        missing = [char for at, char in enumerate(sentence) if char.isalnum() and at not in led]
        assert not missing, sentence
        for start, end in tokens.spans:
            assert " " not in sentence[max(0, start - 2) : end - 2].strip(), "a token is of one word"


@pytest.mark.parametrize("language", PACKAGES)
def test_the_four_languages_are_rewritten(language: str, both: tuple[MultilingualText, Any]) -> None:
    ours, theirs = both
    for sentence in SENTENCES[language]:
        plain = theirs.encode(sentence)
        assert ours.encode(Text.of(sentence), language).ids[1:] != plain, sentence


@pytest.fixture(scope="module")
def lacking(checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> MultilingualText:
    """A machine that has none of what the four languages need."""
    path = checkpoint_of("tiny-multilingual").tokenizer_path
    with pytest.MonkeyPatch.context() as patch:
        for package in (*PACKAGES.values(), "russian_text_stresser.text_stresser"):
            patch.setitem(sys.modules, package, None)
        made = MultilingualText(path, cangjie=path.with_name(CANGJIE))
        for language in PACKAGES:  # so that all has been looked for before the packages are back
            with pytest.raises(InvalidRequest):
                made.encode(Text.of("Hello."), language)
    return made


@pytest.mark.parametrize(("language", "package"), PACKAGES.items())
def test_a_language_whose_package_is_missing_is_refused_by_name(
    language: str, package: str, lacking: MultilingualText
) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"language is '{language}', which needs the package {package}.*: import of"
    ):
        lacking.encode(Text.of(SENTENCES[language][0]), language)
    assert lacking.encode(Text.of("Hello."), "en")


def test_a_language_whose_data_is_missing_is_refused_with_what_to_do(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = count()

    class Offline:
        """As spacy_pkuseg's class where its model cannot be downloaded."""

        def __init__(self) -> None:
            next(downloads)
            raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "dicta_onnx", stand_in("dicta_onnx", Dicta=Dicta))
    monkeypatch.setattr("spacy_pkuseg.pkuseg", Offline)
    path = checkpoint_of("tiny-multilingual").tokenizer_path
    offline = MultilingualText(path, cangjie=path.with_name(CANGJIE))
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"spacy_pkuseg and its model: no route to host"):
            offline.encode(Text.of(SENTENCES["zh"][0]), "zh")
    assert next(downloads) == 1, "it was tried again at a request, which waits meanwhile"
    with pytest.raises(InvalidRequest, match=r"dicta_onnx and its model: CHATTERBOX_DICTA_MODEL does not name"):
        offline.encode(Text.of(SENTENCES["he"][0]), "he")
    bare = MultilingualText(path, cangjie=tmp_path / CANGJIE)
    with pytest.raises(InvalidRequest, match=rf"language is 'zh'.*the checkpoint has no {CANGJIE}"):
        bare.encode(Text.of(SENTENCES["zh"][0]), "zh")
