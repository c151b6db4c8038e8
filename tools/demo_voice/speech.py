"""The corpus of sound: sentences spoken by hibari and as another voice.

    python -m tools.demo_voice.speech FOLDER

Reads what `timings` wrote. Shards that exist are kept, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from chatterbox_engine.voices.reference import s3_tokenizer
from tools.demo_voice import timings
from tools.demo_voice.phones import INDEX, LEAD, TOKEN, places, units
from tools.demo_voice.sizes import DIMS
from tools.demo_voice.source import FRAME, RATE, SPEAKERS, UNIT, Source, Spoken

HOP = 480
"""Samples of a mel frame."""
SENTENCES = {"heart": 2000, "bass": 1000}
"""Who says how many."""
SHARD = 250
LEVEL = 0.8


@dataclass
class Corpus:
    """All of a speaker's sentences, one after the other."""

    text: list[str]
    begin: np.ndarray
    """Where each sentence begins, and the end, in tokens."""
    phones: np.ndarray
    """[2, tokens]: the phones of each token."""
    wav: np.ndarray
    """int16 at 24 kHz, 960 a token."""
    mel: np.ndarray
    """[2 * tokens, 80], upstream's at 50 Hz."""
    logmel: np.ndarray
    """[4 * tokens, 128] at 100 Hz, the input of the S3 tokenizer."""
    f0: np.ndarray
    """[2 * tokens], Hz, zero where there is none."""


def load(folder: Path, speaker: str) -> Corpus:
    files = [np.load(path) for path in sorted(folder.glob(f"speech-{speaker}-*.npz"))]
    join = lambda name: np.concatenate([file[name] for file in files])  # noqa: E731
    phones = np.stack([join("p"), join("q")]).astype(np.int64)
    begin = np.concatenate([[0], np.cumsum(join("n"))])
    return Corpus(list(join("text")), begin, phones, *map(join, ("wav", "mel", "logmel", "f0")))


def corpora(folder: Path) -> list[Corpus]:
    """Of all speakers, hibari's own first."""
    return [load(folder, name) for name in SPEAKERS]


def cut(spoken: Spoken, wave: np.ndarray, f0: np.ndarray) -> dict[str, Any]:
    """A sentence's samples, F0 of mel frames and phones, as long as its tokens are."""
    grid = units(spoken.symbols, spoken.durations.tolist())
    numbers = np.array([INDEX[phone] for phone, _ in grid])
    first, second = numbers[np.stack(places(len(grid)))]
    samples = len(first) * TOKEN * RATE // 1000
    skipped = max(0, int(spoken.durations[0]) - LEAD)
    wave = LEVEL * wave[skipped * UNIT :][:samples]
    middles = ((np.arange(samples // HOP) + 0.5) * HOP / FRAME).astype(int)
    f0 = f0[skipped * UNIT // FRAME :]
    return {
        "wav": np.pad(wave, (0, samples - len(wave))),
        "f0": f0[middles.clip(0, len(f0) - 1)],
        "p": first.astype(np.int16),
        "q": second.astype(np.int16),
    }


def shard(path: Path, speaker: str, sentences: Sequence[Spoken]) -> Path:
    if path.exists():
        return path
    from chatterbox.models.s3gen.utils.mel import mel_spectrogram

    torch.set_num_threads(1)
    source, tokenizer = Source(), s3_tokenizer(DIMS.reference)
    rows = []
    for spoken in sentences:
        row = cut(spoken, *source.speech(spoken, SPEAKERS[speaker]))
        wave, count = row["wav"], len(row["p"])
        low = soxr.resample(wave, RATE, 16_000)
        mel = mel_spectrogram(torch.from_numpy(wave)[None])[0].T.numpy()
        logmel = tokenizer.log_mel_spectrogram(torch.from_numpy(low)).T.numpy()
        row |= {"mel": mel.astype(np.float16), "logmel": logmel.astype(np.float16), "n": np.array([count])}
        assert (len(mel), len(logmel)) == (2 * count, 4 * count)
        rows.append(row | {"wav": np.round(wave.clip(-1, 1) * 32767).astype(np.int16)})
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    part = path.with_suffix(".part.npz")
    np.savez(part, text=np.array([spoken.text for spoken in sentences]), **arrays)
    part.rename(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    spoken = timings.load(arguments.folder, shards=-(-sum(SENTENCES.values()) // timings.SHARD) + 1)
    jobs, first = [], 0
    for speaker, count in SENTENCES.items():
        for number in range(first, first + count, SHARD):
            path = arguments.folder / f"speech-{speaker}-{number:05}.npz"
            jobs.append((path, speaker, spoken[number : min(number + SHARD, first + count)]))
        first += count
    with ProcessPoolExecutor(arguments.workers) as pool:
        running = [pool.submit(shard, *job) for job in jobs]
        for number, future in enumerate(running, 1):
            print(f"speech: {number} of {len(jobs)} shards, {future.result().name}", flush=True)


if __name__ == "__main__":
    main()
