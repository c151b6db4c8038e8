"""How hibari would say the texts, and T3's sentences from that.

    python -m tools.demo_voice.timings FOLDER

Writes FOLDER/spoken-N.pickle in shards, which are kept, so that an interrupted run goes on where it was; then
FOLDER/t3.npz: the text of every sentence as `tokenizer.json` has it, its speech tokens, and which letter each half of
a token is of.
"""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tools.demo_voice.letters import Costs, Phones, aligned
from tools.demo_voice.phones import INDEX, PHONES, merged, places, plain, units
from tools.demo_voice.source import Source, Spoken

SHARD = 1000
RARE = 3
"""How often a token must be said to be one of T3's; sentences with another one are left out."""
_WORD = re.compile(r"([a-z']+)([,.?!]*)")


def shard(folder: Path, number: int, texts: list[str]) -> None:
    path = folder / f"spoken-{number:03}.pickle"
    if not path.exists():
        source = Source(front=True)
        part = path.with_suffix(".part")
        part.write_bytes(pickle.dumps([spoken for text in texts if (spoken := source.timings(text))]))
        part.rename(path)


def load(folder: Path, shards: int | None = None) -> list[Spoken]:
    paths = sorted(folder.glob("spoken-*.pickle"))[:shards]
    return [spoken for path in paths for spoken in pickle.loads(path.read_bytes())]


@dataclass
class Sentence:
    """As `train_t3.Row`, with phones instead of compact tokens."""

    text: list[int]
    phones: np.ndarray
    letters: np.ndarray
    said: list[int]
    characters: int


class Speller:
    """From hibari's timings to T3's sentences."""

    def __init__(self, tokenizer: Tokenizer, costs: Costs) -> None:
        self._tokenizer, self._costs = tokenizer, costs
        self._ids: dict[str, list[int]] = {}
        self._splits: dict[tuple[str, Phones], list[Phones]] = {}
        self.labels: dict[Phones, int] = {}
        space = tokenizer.token_to_id("[SPACE]")
        assert space is not None
        self.space = space

    def sentence(self, spoken: Spoken) -> Sentence | None:
        """None where a word is not of letters, or has more phones than they can have."""
        groups = [merged(group) for group in spoken.symbols.split(" ")]
        text: list[int] = []
        said: list[int] = []
        where: list[list[int]] = []
        for word, phones in zip(spoken.text.lower().split(" "), groups, strict=True):
            match = _WORD.fullmatch(word)
            if not match or not 0 < len(phones) <= 2 * len(match[1]):
                return None
            if text:
                text.append(self.space)
                said.append(-1)
            split = self._split(match[1], tuple(phones))
            where.append([len(text) + index for index, part in enumerate(split) for _ in part])
            text += self._encoded(word)
            said += [self.labels.setdefault(part, len(self.labels)) for part in split] + [-1] * len(match[2])
        grid = units(spoken.symbols, spoken.durations.tolist())
        letters = np.array(_letters(grid, groups, where, len(text)))
        phones_of = np.array([INDEX[phone] for phone, _ in grid])
        halves = np.stack(places(len(grid)))
        return Sentence(text, phones_of[halves], letters[halves], said, len(spoken.text))

    def _encoded(self, word: str) -> list[int]:
        if word not in self._ids:
            self._ids[word] = self._tokenizer.encode(word).ids
        return self._ids[word]

    def _split(self, word: str, phones: Phones) -> list[Phones]:
        if (word, phones) not in self._splits:
            self._splits[word, phones] = aligned(word, phones, self._costs)
        return self._splits[word, phones]


def _letters(grid: list[tuple[str, int]], groups: list[list[str]], where: list[list[int]], end: int) -> list[int]:
    """For each unit the place in the text of the letter that is said; silence is the last letter's before it."""
    found: list[int] = []
    before: tuple[str, int] | None = None
    phone = 0
    for name, word in grid:
        if word < 0 or name == "_":
            found.append(end - 1 if word == -2 else where[word][-1] if word >= 0 else 0)
            continue
        if before is None or word != before[1]:
            phone = 0
        elif plain(name) != plain(before[0]):
            phone += 1
        elif groups[word][phone + 1 : phone + 2] == [plain(name)] and name != before[0]:
            phone += 1  # the same vowel twice, of which one is stressed
        before = (name, word)
        found.append(where[word][min(phone, len(where[word]) - 1)])
    return found


def arrays(sentences: list[Sentence], speller: Speller) -> dict[str, Any]:
    """What `train_t3.Sentences` reads."""
    count = len(PHONES)
    pairs = [sentence.phones[0] * count + sentence.phones[1] for sentence in sentences]
    often = collections.Counter(np.concatenate(pairs).tolist())
    live = np.array([pair for pair, times in often.most_common() if times >= RARE])
    index = np.full(count * count, -1)
    index[live] = np.arange(len(live))
    kept = [(sentence, index[pair]) for sentence, pair in zip(sentences, pairs, strict=True) if index[pair].min() >= 0]
    flat = lambda parts: np.concatenate([np.asarray(part, np.int16) for part in parts])  # noqa: E731
    return {
        "t": flat(sentence.text for sentence, _ in kept),
        "s": flat(speech for _, speech in kept),
        "a": flat(sentence.letters[0] for sentence, _ in kept),
        "b": flat(sentence.letters[1] for sentence, _ in kept),
        "o": flat(sentence.said for sentence, _ in kept),
        "nt": np.array([len(sentence.text) for sentence, _ in kept]),
        "ns": np.array([len(speech) for _, speech in kept]),
        "chars": np.array([sentence.characters for sentence, _ in kept]),
        "live": live,
        "labels": len(speller.labels),
        "space": speller.space,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    folder = arguments.folder
    texts = (folder / "texts.txt").read_text().splitlines()
    shards = [texts[first : first + SHARD] for first in range(0, len(texts), SHARD)]
    with ProcessPoolExecutor(arguments.workers) as pool:
        running = [pool.submit(shard, folder, number, part) for number, part in enumerate(shards)]
        for number, future in enumerate(running, 1):
            future.result()
            print(f"timings: {number} of {len(shards)} shards", flush=True)
    _, costs = pickle.loads((folder / "letters.pickle").read_bytes())
    speller = Speller(Tokenizer.from_file(str(folder / "tokenizer.json")), costs)
    sentences = [sentence for spoken in load(folder) if (sentence := speller.sentence(spoken))]
    found = arrays(sentences, speller)
    np.savez(folder / "t3.npz", **found)
    hours = found["ns"].sum() / 25 / 3600
    print(f"timings: {len(found['ns'])} sentences, {hours:.1f} h, {len(found['live'])} tokens in use")


if __name__ == "__main__":
    main()
