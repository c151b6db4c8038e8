"""Letter-to-sound rules for the normaliser of a `tokenizer.json`, learnt from hibari's lexicon (misaki's).

    python -m tools.demo_voice.letters FOLDER

Every letter becomes one token that says which letter it is and which phones, none to two, it likely makes: T3 can
overrule it, and need not learn how English is spelt. Letters and phones are aligned by Viterbi training. Rules
"letter in a context of up to eight letters: phones" are learnt in order of specificity, each one kept if it mends
enough of what those before it get wrong. The tokenizer splits at blanks before it normalises, so that every word is
read by itself.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import math
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
PUNCTUATION = ",.?!-"
VOWELS = frozenset("aeiouy")
MOST = 2
"""Phones of a letter."""
EDGE = "#"
LEAST = 10.0
"""What a rule must mend, in weighted letters; a word weighs 1 and the root of how often the texts have it."""
RARE = 12
"""Words in which letter and phones must go together to be a token."""

Phones = tuple[str, ...]
Shape = tuple[tuple[int, bool], ...]
"""Offsets of a context's letters, and whether the letter itself or only its kind counts."""
Rule = tuple[Shape, str, str, Phones]
"""Shape, letter, context, phones."""
Costs = dict[str, dict[Phones, float]]


def lexicon() -> dict[str, list[str]]:
    """The phones of every word of the package's American lexicons."""
    import hibari

    entries: dict[str, list[str]] = {}
    for name in ("silver", "gold"):
        path = Path(hibari.__file__).parent / "assets" / f"lexicon_us_{name}.json.gz"
        for word, said in json.loads(gzip.decompress(path.read_bytes())).items():
            symbols = said if isinstance(said, str) else said.get("DEFAULT")
            low = word.lower()
            if symbols and re.fullmatch(r"[a-z']{1,18}", low) and (word == low or low not in entries):
                entries[low] = [symbol for symbol in symbols if symbol not in "ˈˌ"]
    return {word: said for word, said in entries.items() if 0 < len(said) <= MOST * len(word)}


def aligned(word: str, said: Sequence[str], costs: Costs) -> list[Phones]:
    """The cheapest split of phones over the letters."""
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for letter in word:
        row: dict[int, tuple[float, int]] = {}
        for done, (cost, _) in best[-1].items():
            for count in range(min(MOST, len(said) - done) + 1):
                phones = tuple(said[done : done + count])
                total = cost + costs[letter].get(phones, 9.0 + 3 * (count == MOST))
                if done + count not in row or total < row[done + count][0]:
                    row[done + count] = (total, count)
        best.append(row)
    split, end = [], len(said)
    for row in reversed(best[1:]):
        count = row[end][1]
        split.append(tuple(said[end - count : end]))
        end -= count
    return split[::-1]


def align(lexicon: dict[str, list[str]]) -> tuple[dict[str, list[Phones]], Costs]:
    """Words with the phones of each letter; Viterbi training, which starts with phones at the letters' places."""
    words = list(lexicon)
    counts: dict[str, collections.Counter[Phones]] = {letter: collections.Counter() for letter in LETTERS}
    for word in words:
        said = lexicon[word]
        for index, letter in enumerate(word):
            at = int(index * len(said) / len(word))
            counts[letter][(said[at],)] += 10
            counts[letter][()] += 3
            if len(said) > len(word) and at + 1 < len(said):
                counts[letter][tuple(said[at : at + 2])] += 2
    result: dict[str, list[Phones]] = {}
    costs: Costs = {}
    for share in (8000, 16_000, 16_000, len(words)):
        costs = {letter: _costs(counter) for letter, counter in counts.items()}
        result = {word: aligned(word, lexicon[word], costs) for word in words[:share]}
        counts = {letter: collections.Counter() for letter in LETTERS}
        for word, split in result.items():
            for letter, phones in zip(word, split, strict=True):
                counts[letter][phones] += 1
    return result, costs


def _costs(counter: collections.Counter[Phones]) -> dict[Phones, float]:
    total = counter.total() + 1
    return {
        phones: -math.log(count / total) + 0.7 * (len(phones) == MOST)
        for phones, count in counter.items()
        if count / total > 2e-4
    }


def _padded(word: str) -> str:
    return EDGE * 5 + word + EDGE * 5


def _kind(letter: str) -> str:
    return EDGE if letter == EDGE else "V" if letter in VOWELS else "C"


def _context(text: str, at: int, shape: Shape) -> str:
    return "".join(text[at + offset] if exact else _kind(text[at + offset]) for offset, exact in shape)


def shapes() -> Iterator[Shape]:
    """From the most general one."""
    exact = lambda left, right: tuple((o, True) for o in (*range(-left, 0), *range(1, right + 1)))  # noqa: E731
    kinds = lambda *offsets: tuple((offset, False) for offset in offsets)  # noqa: E731
    yield ()
    yield from (kinds(1), kinds(-1), kinds(-1, 1), kinds(1, 2), kinds(-1, 1, 2), kinds(-2, -1, 1, 2))
    yield from (exact(0, 1), exact(1, 0), ((1, True), (2, False)), ((1, False), (2, True)))
    yield from (((-1, False), (1, True)), ((-1, True), (1, False)), ((-1, True), (1, False), (2, False)))
    yield from (((1, False), (2, True), (3, False)), ((1, False), (2, True), (3, True)))
    for size in range(2, 9):
        yield from (exact(left, size - left) for left in range(size + 1) if left <= 4 and size - left <= 5)


def learn(words: Sequence[tuple[str, list[Phones], float]], least: float) -> list[Rule]:
    """words: with the phones of each letter, and their weight."""
    places = [
        (_padded(word), index + 5, phones, weight)
        for word, split, weight in words
        for index, phones in enumerate(split)
    ]
    now: list[Phones | None] = [None] * len(places)
    rules: list[Rule] = []
    for shape in shapes():
        groups: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
        for number, (text, at, _, _) in enumerate(places):
            groups[text[at], _context(text, at, shape)].append(number)
        for (letter, context), members in groups.items():
            votes: collections.Counter[Phones] = collections.Counter()
            right = 0.0
            for number in members:
                _, _, phones, weight = places[number]
                votes[phones] += weight  # type: ignore[assignment]  # counters of floats
                right += weight * (now[number] == phones)
            phones, weight = votes.most_common(1)[0]
            if weight - right >= least or not shape:
                rules.append((shape, letter, context, phones))
                for number in members:
                    now[number] = phones
    return rules


class Reader:
    """What the rules make of a word: what the normaliser of `tokenizer` does, faster."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._tables: dict[Shape, dict[tuple[str, str], Phones]] = {}
        for shape, letter, context, phones in rules:
            self._tables.setdefault(shape, {})[letter, context] = phones
        self._shapes = list(reversed(self._tables))

    def __call__(self, word: str) -> list[Phones]:
        text = _padded(word)
        return [self._letter(text, at) for at in range(5, len(word) + 5)]

    def _letter(self, text: str, at: int) -> Phones:
        for shape in self._shapes:
            phones = self._tables[shape].get((text[at], _context(text, at, shape)))
            if phones is not None:
                return phones
        raise AssertionError(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--least", type=float, default=LEAST)
    arguments = parser.parse_args()
    from tools.demo_voice.tokenizer import symbols, write

    texts = (arguments.folder / "texts.txt").read_text().splitlines()
    counts = collections.Counter(word for text in texts for word in re.findall(r"[a-z']+", text.lower()))
    words, costs = align(dict(sorted(lexicon().items())))
    often = collections.Counter(pair for word, split in words.items() for pair in zip(word, split, strict=True))
    regular = [
        (word, split, 1 + math.sqrt(counts[word]))
        for word, split in words.items()
        if all(often[pair] >= RARE for pair in zip(word, split, strict=True))
    ]
    rules = learn(regular, arguments.least)
    write(rules, symbols(rules), arguments.folder / "tokenizer.json")
    with (arguments.folder / "letters.pickle").open("wb") as file:
        pickle.dump((rules, costs), file)
    read = Reader(rules)
    right = sum(counts[word] for word, split, _ in regular if read(word) == split)
    known = sum(counts[word] for word in words)
    print(f"letters: {len(rules)} rules, {right / known:.3f} of the texts' words in the lexicon are read as it says")


if __name__ == "__main__":
    main()
