"""Incremental audio encoding for streamed responses.

It uses PyAV (FFmpeg): libsndfile, which the client uses for files, cannot stream formats whose header holds the length
and buffers a second of Opus.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import av
import numpy as np


@dataclass(frozen=True)
class Format:
    """FFmpeg settings of one of OpenAI's formats."""

    container: str
    codec: str
    content_type: str
    bit_rate: int | None = None  # bits per second; None: lossless
    options: dict[str, str] = field(default_factory=dict)  # of the container


FORMATS = {
    "mp3": Format("mp3", "libmp3lame", "audio/mpeg", 96_000),
    "opus": Format("ogg", "libopus", "audio/ogg", 64_000, {"page_duration": "100000"}),  # microseconds
    "aac": Format("adts", "aac", "audio/aac", 96_000),
    "flac": Format("flac", "flac", "audio/flac"),
    "wav": Format("wav", "pcm_s16le", "audio/wav"),
    "pcm": Format("s16le", "pcm_s16le", "audio/pcm"),
}
"""OpenAI's `response_format`s."""


class _Pipe:
    """A sink that cannot seek."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: bytes) -> int:
        self.taken += data
        return len(data)


class Encoder:
    """Encodes mono 16-bit samples into one file, incrementally.

        encoder = Encoder(FORMATS["mp3"], 24_000)
        for chunk in client.stream("Hello."):
            player.write(encoder.encode(chunk.to_bytes()))
        player.write(encoder.finish())

    The returned bytes, joined, are the file. Its header does not hold the length; that of `encode_file` does.
    """

    def __init__(self, format: Format, sample_rate: int) -> None:
        self._pipe = _Pipe()
        self._writer = _Writer(format, sample_rate, self._pipe)

    def encode(self, samples: bytes) -> bytes:
        """Takes raw little-endian 16-bit samples and returns the bytes that are ready, which may be none."""
        self._writer.write(samples)
        return self._take()

    def finish(self) -> bytes:
        """The rest of the file."""
        self._writer.close()
        return self._take()

    def _take(self) -> bytes:
        taken = bytes(self._pipe.taken)
        self._pipe.taken.clear()
        return taken


def encode_file(format: Format, sample_rate: int, samples: bytes) -> bytes:
    """Encodes raw little-endian mono 16-bit samples as a file."""
    buffer = io.BytesIO()
    writer = _Writer(format, sample_rate, buffer)
    writer.write(samples)
    writer.close()
    return buffer.getvalue()


class _Writer:
    def __init__(self, format: Format, sample_rate: int, sink: object) -> None:
        options = {
            "flush_packets": "1",
            "fflags": "bitexact",
            **format.options,
        }  # bitexact: no encoder name
        self._container = av.open(sink, "w", format=format.container, options=options)
        stream = self._container.add_stream(format.codec, rate=sample_rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.thread_count = 1  # many streams are encoded in parallel
        if format.bit_rate is not None:
            stream.bit_rate = format.bit_rate
        self._stream = stream
        self._rate = sample_rate
        self._written = 0  # samples

    def write(self, samples: bytes) -> None:
        pcm = np.frombuffer(samples, dtype="<i2")
        if not len(pcm):
            return
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = self._rate
        frame.pts = self._written
        self._written += len(pcm)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
