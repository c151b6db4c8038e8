"""What a recogniser hears: pocketsphinx with its own acoustic model and its general model of English.

Word error rates are edit distances over words. pocketsphinx (CMU) ships all of its models in its package.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pocketsphinx
import soxr

_RATE = 16_000


class Recogniser:
    """Recognises any English of the 133,000 words in pocketsphinx's dictionary."""

    def __init__(self) -> None:
        models = Path(pocketsphinx.get_model_path(), "en-us")
        self._decoder = pocketsphinx.Decoder(
            hmm=str(models / "en-us"),
            lm=str(models / "en-us.lm.bin"),
            dict=str(models / "cmudict-en-us.dict"),
            samprate=_RATE,
            loglevel="FATAL",
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


def normal(text: str) -> list[str]:
    """A text's words, as the recogniser writes them."""
    return re.findall(r"[a-z']+", text.lower())


def known(texts: Sequence[str]) -> bool:
    """Whether the recogniser's dictionary has all the words of some texts."""
    path = Path(pocketsphinx.get_model_path(), "en-us", "cmudict-en-us.dict")
    words = {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line}
    return all(words.issuperset(normal(text)) for text in texts)


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
