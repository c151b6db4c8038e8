"""Mel pictures of source and result, side by side, for the model card.

    python -m tools.demo_voice.pictures FOLDER CHECKPOINT

The left half of each is hibari's sentence, of the corpus of sound; the right half is the same text from the checkpoint.
Up to 12 kHz, from dark to bright over 70 dB.
"""

from __future__ import annotations

import argparse
import struct
import zlib
from pathlib import Path

import numpy as np
from librosa.filters import mel
from numpy.lib.stride_tricks import sliding_window_view

from tools.demo_voice import speech
from tools.demo_voice.evaluate import Listener
from tools.demo_voice.source import RATE

COUNT = 2
_SIZE, _HOP, _BANDS, _RANGE = 1024, 240, 128, 70.0
_GAP = 6


def picture(wave: np.ndarray) -> np.ndarray:
    """[bands, frames] in 0 to 255, the highest band first."""
    frames = sliding_window_view(np.pad(wave, _SIZE // 2), _SIZE)[::_HOP] * np.hanning(_SIZE)
    power = np.abs(np.fft.rfft(frames)) ** 2 @ mel(sr=RATE, n_fft=_SIZE, n_mels=_BANDS, fmax=RATE / 2).T
    level = 10 * np.log10(power + 1e-10)
    shade = (level - level.max() + _RANGE) / _RANGE * 255
    return np.flipud(shade.T.clip(0, 255)).astype(np.uint8)


def png(rows: np.ndarray) -> bytes:
    """A grey picture, [height, width] uint8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = rows.shape
    lines = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each line begins with its filter, none
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", type=Path)
    arguments = parser.parse_args()
    corpus = speech.load(arguments.folder, "heart")
    listener = Listener(arguments.checkpoint, None)
    short = [number for number, count in enumerate(np.diff(corpus.begin)) if 60 < count < 90][:COUNT]
    for number, sentence in enumerate(short, 1):
        begin, end = 2 * speech.HOP * corpus.begin[[sentence, sentence + 1]]
        source = picture(corpus.wav[begin:end].astype(np.float32) / 32767)
        result = picture(listener.speak(corpus.text[sentence], seed=1))
        gap = np.full((_BANDS, _GAP), 255, np.uint8)
        path = arguments.checkpoint / f"mel-{number}.png"
        path.write_bytes(png(np.concatenate([source, gap, result], 1)))
        print(f"{path.name}: {corpus.text[sentence]}")
    listener.close()


if __name__ == "__main__":
    main()
