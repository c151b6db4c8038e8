"""What speech tokens of the demo voice say, and when: their phones are known, so that word times need no listener."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tools.demo_voice.phones import PHONES, SILENCE, TOKEN, merged, plain, token_ids

SKIPPED = 1.5
"""Cost of an expected phone that is not said; a wrong one costs 1 for each half token."""
FURTHEST = 12
"""Expected phones that may be skipped in one go, and one."""
WORD = 3
"""Phones of a word, on average."""


def _table() -> dict[int, tuple[int, int]]:
    first, second = np.divmod(np.arange(len(PHONES) ** 2), len(PHONES))
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return dict(zip(token_ids(first, second).tolist(), pairs, strict=True))


_HALVES = _table()


def halves(tokens: Sequence[int]) -> list[str]:
    """The phones, without stress, of each half of each token."""
    pairs = [_HALVES.get(token, (SILENCE, SILENCE)) for token in tokens]
    return [plain(PHONES[phone]) for pair in pairs for phone in pair]


def phones(tokens: Sequence[int]) -> list[str]:
    """The phones that are said, one after the other, without silence."""
    said = halves(tokens)
    changed = [phone for before, phone in zip(["_", *said], said, strict=False) if phone != before]
    return [phone for phone in changed if phone != "_"]


def expected(symbols: str) -> list[list[str]]:
    """The phones of each word of hibari's symbols, two equal ones in a row as one, as `phones` has them."""
    words = [[plain(phone) for phone in merged(word)] for word in symbols.split(" ")]
    return [[phone for before, phone in zip(["_", *word], word, strict=False) if phone != before] for word in words]


def phone_errors(said: Sequence[str], wanted: Sequence[str]) -> int:
    """Wrong, missing and surplus phones."""
    return int(_distances(said, wanted)[-1, -1])


def wrong_words(said: Sequence[str], words: Sequence[Sequence[str]]) -> int:
    """Words with a wrong or missing phone, and surplus words: of surplus phones at one place, WORD count as one; fewer
    make the word before them wrong."""
    owner = [number for number, word in enumerate(words) for _ in word]
    wanted = [phone for word in words for phone in word]
    distances = _distances(said, wanted)
    row, column, wrong = len(said), len(wanted), set[int]()
    surplus = [0] * (len(wanted) + 1)
    while row or column:
        here = distances[row, column]
        if row and here == distances[row - 1, column] + 1:
            row -= 1
            surplus[column] += 1
        elif row and column and here == distances[row - 1, column - 1] + (said[row - 1] != wanted[column - 1]):
            row, column = row - 1, column - 1
            if said[row] != wanted[column]:
                wrong.add(owner[column])
        else:
            column -= 1
            wrong.add(owner[column])
    wrong |= {owner[max(0, place - 1)] for place, many in enumerate(surplus) if 0 < many < WORD}
    return len(wrong) + sum(many // WORD for many in surplus)


def _distances(said: Sequence[str], wanted: Sequence[str]) -> npt.NDArray[np.int64]:
    """[said + 1, wanted + 1] Levenshtein's, of the first phones of both."""
    rows = [np.arange(len(wanted) + 1)]
    for number, phone in enumerate(said, 1):
        wrong = rows[-1][:-1] + np.array([phone != other for other in wanted])
        best = np.concatenate([[number], np.minimum(wrong, rows[-1][1:] + 1)])
        rows.append(np.minimum.accumulate(best - np.arange(len(best))) + np.arange(len(best)))
    return np.array(rows)


def word_starts(tokens: Sequence[int], words: Sequence[Sequence[str]]) -> dict[int, float]:
    """When each word begins, in seconds, by the best path of what is said through the expected phones. Words that are
    not said are left out."""
    said = halves(tokens)
    states = [("_", -1)]
    for number, word in enumerate(words):
        states += [(phone, number) for phone in word] + [("_", -1)]
    skipped = np.concatenate([[0.0], np.cumsum([SKIPPED * (phone != "_") for phone, _ in states])])
    wrong = {phone: np.array([float(phone != other) for other, _ in states]) for phone in set(said)}
    total = skipped[:-1] + wrong[said[0]]
    choices = np.zeros((len(said), len(states)), np.int64)
    for at in range(1, len(said)):
        best = total.copy()
        for by in range(1, min(FURTHEST + 1, len(states))):
            cost = total[:-by] + skipped[by:-1] - skipped[1 : len(states) - by + 1]
            choices[at, by:] = np.where(cost < best[by:], by, choices[at, by:])
            best[by:] = np.minimum(best[by:], cost)
        total = best + wrong[said[at]]
    state = int((total + skipped[-1] - skipped[1:]).argmin())
    starts: dict[int, float] = {}
    for at in range(len(said) - 1, -1, -1):
        if states[state][1] >= 0:
            starts[states[state][1]] = at * TOKEN / 2000
        state -= int(choices[at, state])
    return starts
