"""One spoken answer and the files that it can be written to."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

_FILES: dict[str, dict[str, str]] = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "s16": {"format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"},
}

_BLOCK = 65_536
"""Samples per write: libsndfile 1.2.2 overflows its stack when it gets ten minutes of Vorbis in one piece."""


@dataclass(frozen=True)
class Word:
    """A word of the text, and when it is spoken."""

    word: str
    """With its punctuation."""
    start: float
    """Seconds from the begin of the audio."""
    end: float
    span: tuple[int, int]
    """Its first character in the text, and the one after its last."""


@dataclass(frozen=True, eq=False)
class Audio:
    """What `speak` returns.

    audio = client.speak("Good morning.")
    print(audio.duration, audio.rtf, audio.seed)
    audio.save("morning.flac")
    """

    samples: npt.NDArray[np.float32]  # [n] mono, in [-1, 1]
    sample_rate: int
    """Samples per second."""
    speech_tokens: npt.NDArray[np.int32]  # [tokens] the S3 tokens that the samples were made from
    stats: Mapping[str, Any]
    """The server's account of the request: seed, tokens, finish_reason, times in milliseconds and more."""
    words: Sequence[Word] = ()
    """When each word is spoken, if the request asked for it (`word_times=True`)."""

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.samples) / self.sample_rate

    @property
    def rtf(self) -> float:
        """Real-time factor: the server's wall seconds per second of audio, lower is better."""
        return float(self.stats["rtf"])

    @property
    def seed(self) -> int:
        """The seed that gives this audio again."""
        return int(self.stats["seed"])

    def to_bytes(self, format: str = "wav") -> bytes:
        """The audio as a `wav`, `flac`, `ogg` or `mp3` file, or as `s16`, raw little-endian 16-bit samples.

        Raises ValueError for another format.
        """
        if format not in _FILES:
            raise ValueError(f"unknown audio format {format!r}: use one of {', '.join(_FILES)}")
        buffer = io.BytesIO()
        with _encoder(buffer, self.sample_rate, format) as write:
            write(self.samples)
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file in the format that its extension names: .wav (16-bit), .flac, .ogg, .mp3.

        Raises ValueError for another extension and OSError when the file cannot be written.
        """
        Path(path).write_bytes(self.to_bytes(file_format(path)))


@dataclass(frozen=True, eq=False)
class Chunk:
    """A part of what `stream` yields: it follows the one before without a gap."""

    samples: npt.NDArray[np.float32]  # [n] mono, in [-1, 1]
    sample_rate: int
    """Samples per second."""
    speech_tokens: npt.NDArray[np.int32]  # [tokens] the S3 tokens that the samples were made from
    index: int
    """From 0."""
    is_last: bool
    stats: Mapping[str, Any]
    """The server's account of the whole request, in the last chunk; empty before."""
    words: Sequence[Word] = ()
    """The words that end in this chunk, if the request asked for them; their times are those of the whole audio."""

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.samples) / self.sample_rate

    def to_bytes(self) -> bytes:
        """Raw little-endian 16-bit samples, for a player's pipe."""
        return Audio(self.samples, self.sample_rate, self.speech_tokens, self.stats).to_bytes("s16")


@contextmanager
def audio_file(path: str | os.PathLike[str], sample_rate: int) -> Iterator[Callable[[npt.NDArray[np.float32]], None]]:
    """What appends samples, [n] mono, in [-1, 1], to a file as `Audio.save` writes it, which is whole at the end.

    Raises ValueError for another extension and OSError when the file cannot be written.
    """
    format = file_format(path)
    with Path(path).open("w+b", buffering=0) as file:
        # By its descriptor: an exception in a callback that writes, Ctrl-C among them, would be printed and lost.
        try:
            with _encoder(file.fileno(), sample_rate, format) as write:
                yield write
        except soundfile.LibsndfileError as error:
            raise OSError(f"cannot write {os.fspath(path)}: {error.error_string}") from error


def concatenate(chunks: Sequence[Chunk]) -> Audio:
    """A whole stream as one. Raises ValueError when there is no last chunk."""
    if not chunks or not chunks[-1].is_last:
        raise ValueError("not a whole stream: its last chunk is missing")
    return Audio(
        samples=np.concatenate([chunk.samples for chunk in chunks]),
        sample_rate=chunks[-1].sample_rate,
        speech_tokens=np.concatenate([chunk.speech_tokens for chunk in chunks]),
        stats=chunks[-1].stats,
        words=[word for chunk in chunks for word in chunk.words],
    )


def file_format(path: str | os.PathLike[str]) -> str:
    """The format that a file name's extension asks for; raises ValueError when it is none of `Audio.save`'s."""
    extension = Path(path).suffix.lower().removeprefix(".")
    if extension not in _FILES or extension == "s16":
        raise ValueError(f"{os.fspath(path)!r}: use the extension .wav, .flac, .ogg or .mp3")
    return extension


@contextmanager
def _encoder(
    file: io.BytesIO | int, sample_rate: int, format: str
) -> Iterator[Callable[[npt.NDArray[np.float32]], None]]:
    options = _FILES[format]
    with soundfile.SoundFile(file, "w", samplerate=sample_rate, channels=1, closefd=False, **options) as encoder:

        def write(samples: npt.NDArray[np.float32]) -> None:
            for start in range(0, len(samples), _BLOCK):
                encoder.write(samples[start : start + _BLOCK])

        yield write
