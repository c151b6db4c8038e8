"""What a recogniser hears: pocketsphinx with its own acoustic model, and a bigram model of the grammar's sentences.

Word error rates are edit distances over words. pocketsphinx (CMU) ships acoustic model and dictionary in its package.
"""

from __future__ import annotations

import collections
import itertools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pocketsphinx
import soxr

from tools.demo_voice.sentences import normal, sentences

_RATE = 16_000
_SENTENCES = 6000
"""From which the bigrams are counted."""


class Recogniser:
    """Recognises English of the demo voice's vocabulary."""

    def __init__(self) -> None:
        texts, _ = sentences(_SENTENCES)
        counted = [normal(text) for text in texts]
        with tempfile.TemporaryDirectory() as folder:
            model, words = Path(folder, "bigrams.lm"), Path(folder, "words.dict")
            model.write_text(arpa(counted), encoding="ascii")
            words.write_text(dictionary({word for words in counted for word in words}), encoding="ascii")
            self._decoder = pocketsphinx.Decoder(
                samprate=_RATE, lm=str(model), dict=str(words), loglevel="FATAL", beam=1e-60, wbeam=1e-40
            )

    def words(self, samples: np.ndarray, rate: int) -> list[str]:
        """What is said in a mono waveform."""
        narrow = soxr.resample(np.asarray(samples, np.float32), rate, _RATE)
        loud = narrow * (0.6 / max(1e-3, float(np.abs(narrow).max(initial=0.0))))
        noise = np.random.default_rng(0).normal(0.0, 1e-4, len(loud) + 2 * 4000)  # digital silence confuses it
        heard = np.pad(loud, 4000) + noise
        self._decoder.start_utt()
        self._decoder.process_raw((heard.clip(-1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return normal(hypothesis.hypstr) if hypothesis else []


def error_rate(texts: Sequence[str], heard: Sequence[Sequence[str]]) -> float:
    """Wrong, missing and surplus words per word of the texts, which `heard` has the words of."""
    wanted = [normal(text) for text in texts]
    return sum(map(distance, wanted, heard)) / sum(map(len, wanted))


def distance(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein's, over words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def dictionary(vocabulary: set[str]) -> str:
    """The entries of pocketsphinx's dictionary for these words. Raises ValueError for words that it lacks."""
    path = Path(pocketsphinx.get_model_path(), "en-us", "cmudict-en-us.dict")
    entries = [
        line for line in path.read_text(encoding="utf-8").splitlines() if line.split("(")[0].split()[0] in vocabulary
    ]
    if lacking := vocabulary - {line.split("(")[0].split()[0] for line in entries}:
        raise ValueError(f"the recogniser does not know {', '.join(sorted(lacking))}")
    return "\n".join(entries) + "\n"


def arpa(texts: Sequence[Sequence[str]]) -> str:
    """A bigram model with Witten-Bell smoothing (1991) in ARPA's format."""
    unigrams: collections.Counter[str] = collections.Counter()
    bigrams: collections.defaultdict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for text in texts:
        padded = ["<s>", *text, "</s>"]
        unigrams.update(padded[1:])
        for first, second in itertools.pairwise(padded):
            bigrams[first][second] += 1
    total = unigrams.total() + len(unigrams)
    share = {word: (count + 1) / total for word, count in unigrams.items()}
    lines = ["\\data\\", f"ngram 1={len(share) + 1}", f"ngram 2={sum(map(len, bigrams.values()))}", "", "\\1-grams:"]
    rest = {first: len(seconds) / (seconds.total() + len(seconds)) for first, seconds in bigrams.items()}
    for word in ["<s>", *sorted(share)]:
        backoff = 0.0
        if word in bigrams:
            left = 1 - sum(share[second] for second in bigrams[word])
            backoff = math.log10(rest[word] / max(left, 1e-6))
        lines.append(f"{math.log10(share[word]) if word in share else -99:.4f} {word} {backoff:.4f}")
    lines += ["", "\\2-grams:"]
    for first in sorted(bigrams):
        seconds = bigrams[first]
        whole = seconds.total() + len(seconds)
        for second, count in sorted(seconds.items()):
            lines.append(f"{math.log10(count / whole):.4f} {first} {second}")
    return "\n".join([*lines, "", "\\end\\", ""])
