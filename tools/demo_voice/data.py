"""The corpus: sentences of the grammar spoken by flite, as waveforms and as upstream's two spectrograms.

    python -m tools.demo_voice.data FOLDER

flite's voices `rms` and `slt` (CMU ARCTIC, Black et al., free for any use) say different sentences. Shards that exist
are kept, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from chatterbox_engine.voices.reference import s3_tokenizer
from tools.demo_voice.sentences import FIXED, sentences
from tools.demo_voice.sizes import DIMS

RATE, HOP = 24_000, 480
SENTENCES = (("rms", 9000), ("slt", 4500), ("rms", 13_500))
"""Who says how many, in the order of the grammar's draws."""
SPEAKERS = tuple(dict.fromkeys(speaker for speaker, _ in SENTENCES))
PITCHED = 1500
"""Sentences of each speaker whose F0 is measured: the vocoder trains on these."""
SHARD = 250
FIXED_SHARD = 999
"""The shard of `sentences.FIXED`."""


def texts() -> tuple[list[str], list[str]]:
    """What is said, and what is held out."""
    return sentences(sum(count for _, count in SENTENCES))


def speak(text: str, speaker: str) -> np.ndarray:
    """flite's own 16 kHz waveform, peak 0.6, with 80 ms of silence before and 120 ms after, padded to whole tokens."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", speaker, "-t", text, "-o", file.name], check=True, stdout=subprocess.DEVNULL)
        samples, rate = soundfile.read(file.name, dtype="float32")
    assert rate == 16_000
    samples = samples * (0.6 / max(1e-3, np.abs(samples).max()))
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    samples = samples[max(0, loud[0] - 1280) : loud[-1] + 1920]
    return np.pad(samples, (0, -len(samples) % 640)).astype(np.float32)


def widen(samples: np.ndarray) -> np.ndarray:
    """16 kHz to 24 kHz."""
    wide: np.ndarray = soxr.resample(samples, 16_000, RATE)
    return wide


def narrow(wave: np.ndarray) -> np.ndarray:
    """A corpus's int16 at 24 kHz to 16 kHz."""
    low: np.ndarray = soxr.resample(wave.astype(np.float32) / 32767, RATE, 16_000)
    return low


def pitch(samples: np.ndarray) -> np.ndarray:
    """F0 in Hz at the middles of 20 ms frames, zero where unvoiced, of a 16 kHz waveform."""
    import pyworld

    double = samples.astype(np.float64)
    coarse, times = pyworld.dio(double, 16_000, f0_floor=60, f0_ceil=400, frame_period=10.0)
    fine = pyworld.stonemask(double, coarse, times, 16_000)
    return fine[1::2][: len(samples) // 320].astype(np.float32)


def shard(speaker: str, index: int, texts: list[str], folder: Path) -> Path:
    """Writes one shard: `wav` int16 at 24 kHz, `mel` [frames, 80] at 50 Hz, `logmel` [frames, 128] at 100 Hz (what the
    S3 tokenizer hears), `frames` per sentence, `f0` where it is measured, and `text`."""
    path = folder / f"{speaker}-{index:03}.npz"
    if path.exists():
        return path
    from chatterbox.models.s3gen.utils.mel import mel_spectrogram

    torch.set_num_threads(1)
    tokenizer = s3_tokenizer(DIMS.reference)
    parts: dict[str, list[Any]] = {name: [] for name in ("wav", "mel", "logmel", "frames", "f0")}
    for text in texts:
        low = speak(text, speaker)
        high = widen(low)
        mel = mel_spectrogram(torch.from_numpy(high))[0].T.numpy()
        assert len(mel) * HOP == len(high)
        parts["wav"].append(np.round(high.clip(-1, 1) * 32767).astype(np.int16))
        parts["mel"].append(mel.astype(np.float16))
        parts["logmel"].append(tokenizer.log_mel_spectrogram(torch.from_numpy(low)).T.numpy().astype(np.float16))
        parts["frames"].append(np.array([len(mel)]))
        if index * SHARD < PITCHED:
            f0 = pitch(low)
            parts["f0"].append(np.pad(f0, (0, len(mel) - len(f0))))
    arrays = {name: np.concatenate(items) for name, items in parts.items() if items}
    part = path.with_suffix(".part.npz")
    np.savez(part, text=np.array(texts), **arrays)
    part.rename(path)
    return path


@dataclass
class Corpus:
    """All shards of a speaker: arrays as in `shard`, and where each sentence begins, in frames."""

    text: list[str]
    wav: np.ndarray
    mel: np.ndarray
    logmel: np.ndarray
    f0: np.ndarray
    begin: np.ndarray


def load(folder: Path, speaker: str, pitched: bool = False, logmel: bool = True) -> Corpus:
    """Reads what `main` wrote; with `pitched` only the sentences whose F0 is known."""
    files = [np.load(path) for path in sorted(folder.glob(f"{speaker}-*.npz")) if "part" not in path.name]
    files = [file for file in files if not pitched or "f0" in file]
    join = lambda name: np.concatenate([file[name] for file in files if name in file])  # noqa: E731
    return Corpus(
        text=[str(text) for text in join("text")],
        wav=join("wav") if pitched else np.empty(0),
        mel=join("mel"),
        logmel=join("logmel") if logmel else np.empty(0),
        f0=join("f0"),
        begin=np.concatenate([[0], np.cumsum(join("frames"))]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    train, held = texts()
    (arguments.folder / "train.txt").write_text("\n".join(train) + "\n")
    (arguments.folder / "held_out.txt").write_text("\n".join(held) + "\n")
    # whoever says the fixed ones below, everybody says them
    jobs = [(speaker, FIXED_SHARD, list(FIXED)) for speaker in SPEAKERS]
    shards, first = collections.Counter[str](), 0
    for speaker, count in SENTENCES:
        for begin in range(first, first + count, SHARD):
            jobs.append((speaker, shards[speaker], train[begin : min(begin + SHARD, first + count)]))
            shards[speaker] += 1
        first += count
    jobs.sort(key=lambda job: job[1])  # the shards with F0 first
    began = time.monotonic()
    with ProcessPoolExecutor(arguments.workers) as pool:
        running = [pool.submit(shard, *job, arguments.folder) for job in jobs]
        for done, future in enumerate(as_completed(running), 1):
            print(
                f"data: {done} of {len(jobs)} shards, {future.result().name}, {time.monotonic() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
