"""The demo voice's training data: phones and tokens, letter-to-sound rules and the tokenizer that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from chatterbox_engine.checkpoint.checkpoint import Checkpoint, locate
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.text import english as text
from chatterbox_engine.text.passages import Text
from tools.demo_voice import letters, phones, texts, timings, tokenizer
from tools.demo_voice.source import Spoken

WORDS = {
    "cat": ["k", "æ", "t"],
    "city": ["s", "ɪ", "t", "i"],
    "cot": ["k", "ɑ", "t"],
    "ice": ["I", "s"],
    "six": ["s", "ɪ", "k", "s"],
}


@pytest.fixture(scope="module")
def rules() -> tuple[list[letters.Rule], letters.Costs]:
    split, costs = letters.align(WORDS)
    return letters.learn([(word, split[word], 20.0) for word in WORDS], 10.0), costs


def test_each_phone_has_a_code_of_its_own_and_a_neighbours_differs_in_one_digit() -> None:
    codes = phones.codes()
    assert len({tuple(code) for code in codes}) == phones.CODES
    assert (np.abs(np.diff(codes, axis=0)).sum(1) == 1).all()
    both = np.stack(np.meshgrid(np.arange(phones.CODES), np.arange(phones.CODES))).reshape(2, -1)
    ids = phones.token_ids(*both)
    assert len(set(ids.tolist())) == phones.CODES**2
    assert ids.min() >= 0
    assert ids.max() < 6561


def test_another_voice_differs_in_its_stressed_vowels() -> None:
    said = np.array([phones.INDEX[phone] for phone in ("k", "æ1", "t", "ə")])
    heard = phones.marked(said)
    assert (heard != said).tolist() == [False, True, False, False]
    assert heard.max() < phones.CODES


def test_units_follow_the_durations() -> None:
    #        pad a   stress      blank        pad
    found = phones.units("ɐ kˈæt.", [9, 2, 3, 1, 1, 4, 9, 2, 5])
    said = [(phone, len([*run])) for phone, run in _runs(found)]
    assert said == [("_", 2), ("ə", 3), ("k", 3), ("æ1", 5), ("t", 5), ("_", 2)]
    assert [word for _, word in found[2:-2]] == [0, 0, 0] + [1] * 13
    first, second = phones.places(len(found))
    assert len(first) == len(found) * phones.GRID // phones.TOKEN
    assert set(range(len(found))) - {0, len(found) - 1} <= {*first.tolist(), *second.tolist()} | {len(found) - 2}


def _runs(found: list[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    runs: list[tuple[str, list[int]]] = []
    for phone, word in found:
        if not runs or runs[-1][0] != phone:
            runs.append((phone, []))
        runs[-1][1].append(word)
    return runs


def test_rules_read_the_words_that_they_were_learnt_from(rules: tuple[list[letters.Rule], letters.Costs]) -> None:
    read = letters.Reader(rules[0])
    assert {word: [phone for part in read(word) for phone in part] for word in WORDS} == WORDS


def test_the_tokenizer_reads_as_the_rules_do_and_has_one_token_for_each_letter(
    rules: tuple[list[letters.Rule], letters.Costs], tmp_path: Path
) -> None:
    table = tokenizer.symbols(rules[0])
    tokenizer.write(rules[0], table, tmp_path / "tokenizer.json")
    written = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    read = letters.Reader(rules[0])
    names = {symbol: pair for pair, symbol in table.items()}
    for word in (*WORDS, "tacit", "cities"):
        pieces = [names[token] for token in written.encode(word.title()).tokens]
        assert pieces == [*zip(word, read(word), strict=True)]


def test_a_sentence_says_which_letter_each_token_is_of(
    rules: tuple[list[letters.Rule], letters.Costs], tmp_path: Path
) -> None:
    tokenizer.write(rules[0], tokenizer.symbols(rules[0]), tmp_path / "tokenizer.json")
    speller = timings.Speller(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), rules[1])
    found = speller.sentence(Spoken("Six cats.", "sˈɪks kˈæts.", np.array([8, 2, 1, 3, 4, 3, 1, 2, 1, 3, 3, 6, 2, 4])))
    assert found is not None
    assert len(found.text) == len(found.said) == len("six cats.")
    spelt = ["six cats."[index] for index in found.letters[0]]
    heard = [phones.PHONES[index] for index in found.phones[0]]
    assert {letter for letter, phone in zip(spelt, heard, strict=True) if phone == "æ1"} == {"a"}
    assert {letter for letter, phone in zip(spelt, heard, strict=True) if phone == "t"} == {"t"}


@pytest.mark.parametrize(
    ("piece", "sentence"),
    [
        ("the cat; the dog", "The cat, the dog."),
        ("well-known (old) cat!", "Well known cat!"),
        ("in 1990 a cat", None),
        ("a qxz zzq cat", None),
        ("cat", None),
    ],
)
def test_only_plain_sentences_are_kept(piece: str, sentence: str | None) -> None:
    known = frozenset(["the", "cat", "dog", "well", "known", "old", "a", "in"])
    assert texts.cleaned(piece, known) == sentence


@pytest.mark.parametrize("strange", ["日本語", "Привет.", "Room 5.", "a + b", "Nice 🙂"])
def test_the_demo_voice_refuses_what_it_cannot_speak(strange: str) -> None:
    front = text.EnglishText(Checkpoint.open(locate("demo")).tokenizer_path)
    with pytest.raises(InvalidRequest, match="cannot speak"):
        front.encode(Text.of(strange), "en")


def test_the_demo_voice_names_what_it_refuses_and_speaks_the_rest() -> None:
    front = text.EnglishText(Checkpoint.open(locate("demo")).tokenizer_path)
    with pytest.raises(InvalidRequest, match="cannot speak 'ß', '5'"):
        front.encode(Text.of("Straße 55"), "en")
    assert len(front.encode(Text.of('"Café," she said (quietly) - it\u2019s \u201cfine\u201d; yes!'), "en").ids) > 20
