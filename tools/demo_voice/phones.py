"""Speech tokens that are phonetic: a token is 40 ms and two phones, so that its eight ternary digits are four for each.

Phones are misaki's, as hibari says them, with stressed vowels apart. Their codes are reflected ternary ones, in an
order of likeness: a digit that is recognised wrongly gives a similar phone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PHONES = tuple(
    "_ p b t d k ɡ T ʧ ʤ f v θ ð s z ʃ ʒ h m n ŋ l ɹ w j "
    "i i1 ɪ ɪ1 A A1 ɛ ɛ1 æ æ1 I I1 ɑ ɑ1 ɔ ɔ1 W W1 ʌ ʌ1 ə ə1 ɜ ɜ1 O O1 ʊ ʊ1 u u1 Y Y1 Q Q1".split()
)
SILENCE = 0
INDEX = {phone: index for index, phone in enumerate(PHONES)}
MARKS = {phone: len(PHONES) + number for number, phone in enumerate(phone for phone in PHONES if phone.endswith("1"))}
"""Codes of stressed vowels that are not hibari's own: what tells a prompt of another voice from one of hers."""
CODES = len(PHONES) + len(MARKS)
_SAME = {"ɐ": "ə", "ᵊ": "ə", "ᵻ": "ɪ", "ɾ": "T"}
"""Symbols of misaki's that share a phone."""
_VOWELS = frozenset("AIOWYiuɑɔæɛɪʊʌəɜQ")
_PAUSES = frozenset(',.?!;:—…"“”')
_STRESS = frozenset("ˈˌ")
GRID, TOKEN = 25, 40
"""Milliseconds of hibari's unit of duration, and of a token."""
LEAD, LAST = 2, 5
"""Units of silence that are kept at both ends, and of the last phone, which hibari stretches."""


def plain(phone: str) -> str:
    """Without stress."""
    return phone.rstrip("1")


def merged(symbols: str) -> list[str]:
    """The phones of a word's symbols, without stress."""
    return [_SAME.get(symbol, symbol) for symbol in symbols if symbol not in _STRESS and symbol not in _PAUSES]


def units(symbols: str, durations: Sequence[int]) -> list[tuple[str, int]]:
    """Phones on hibari's grid, each with the number of its word; -1 in the lead, -2 after the end.

    symbols: a sentence's phonemes; durations: of them and of a pad at either end, in units. What a stress mark takes
    belongs to the vowel after it, what a blank takes to both its neighbours.
    """
    found: list[tuple[str, int]] = [("_", -1)] * min(LEAD, int(durations[0]))
    word, stress, carried = 0, False, 0
    body = list(zip(symbols, map(int, durations[1:-1]), strict=True))
    last = max(index for index, (symbol, _) in enumerate(body) if symbol not in _STRESS | _PAUSES | {" "})
    for symbol, count in [*body[:last], (body[last][0], min(body[last][1], LAST))]:
        if symbol == " ":
            shared = min(count, len(found), 1)
            found += found[-1:] * shared
            word, carried = word + 1, carried + count - shared
        elif symbol in _STRESS:
            stress, carried = symbol == "ˈ", carried + count
        elif symbol in _PAUSES:
            if count > 1:
                found += [("_", word)] * (count + carried)
                carried = 0
        else:
            phone = _SAME.get(symbol, symbol)
            if phone in _VOWELS:
                phone, stress = phone + "1" * stress, False
            found += [(phone, word)] * (count + carried)
            carried = 0
    return found + [("_", -2)] * LEAD


def places(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of `count` units: for each token the unit at its first and third quarter."""
    starts = TOKEN * np.arange(count * GRID // TOKEN)
    return (starts + TOKEN // 4) // GRID, np.minimum((starts + 3 * TOKEN // 4) // GRID, count - 1)


def marked(phones: np.ndarray) -> np.ndarray:
    """The same said by another voice than hibari's."""
    table = np.arange(CODES)
    table[[INDEX[phone] for phone in MARKS]] = list(MARKS.values())
    other: np.ndarray = table[phones]
    return other


def codes() -> np.ndarray:
    """[CODES, 4] in {-1, 0, 1}: reflected ternary codes, of which neighbours differ in one digit."""
    rows: list[tuple[int, ...]] = [()]
    for _ in range(4):
        rows = [(digit, *row) for digit in (-1, 0, 1) for row in (rows if digit else rows[::-1])]
    return np.array(rows[:CODES])


def token_ids(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """S3 tokens of pairs of phones."""
    digits = np.concatenate([codes()[first], codes()[second]], -1)
    ids: np.ndarray = ((digits + 1) * 3 ** np.arange(8)).sum(-1)
    return ids
