"""The form that a caller wants its audio in, and the incremental change of speed, sampling rate and encoding to it.

    16-bit samples --> FFmpeg's atempo --> soxr --> encoder and container

A step that has nothing to do is left out, so that untouched samples stay the server's to the bit. PyAV (FFmpeg)
encodes: libsndfile, which the client uses for files, cannot stream formats whose header holds the length, and buffers a
second of Opus. PyAV's FFmpeg is built without soxr, which is used directly.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.filter
import numpy as np
import numpy.typing as npt
import soxr

from chatterbox_client.errors import InvalidRequest

Samples = npt.NDArray[np.int16]  # [n] mono

RATES = (8_000, 48_000)
"""Lowest and highest sampling rate."""

SPEEDS = (0.25, 4.0)
"""Lowest and highest speed."""

_TEMPO = (0.5, 2.0)
"""What one atempo does well: below it cannot, above it skips samples instead of blending them."""

_MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)


@dataclass(frozen=True)
class Format:
    """FFmpeg settings of a file format."""

    container: str
    codec: str
    content_type: str
    bit_rate: int | None = None  # the usual one, bits per second; None: not a choice
    options: Mapping[str, str] = field(default_factory=dict)  # of the container
    rates: tuple[int, ...] = ()
    """Sampling rates that the codec has; empty: all."""
    sample_rate: int | None = None
    """The usual one; None: that of the server's audio."""


FORMATS = {
    "mp3": Format("mp3", "libmp3lame", "audio/mpeg", 96_000, rates=_MPEG_RATES),
    "opus": Format("ogg", "libopus", "audio/ogg", 64_000, {"page_duration": "100000"}, _OPUS_RATES),  # microseconds
    "aac": Format("adts", "aac", "audio/aac", 96_000, rates=_MPEG_RATES),
    "flac": Format("flac", "flac", "audio/flac"),
    "wav": Format("wav", "pcm_s16le", "audio/wav"),
    "pcm": Format("s16le", "pcm_s16le", "audio/pcm"),
    "ulaw": Format("mulaw", "pcm_mulaw", "audio/PCMU", sample_rate=8_000),
    "alaw": Format("alaw", "pcm_alaw", "audio/PCMA", sample_rate=8_000),
}
"""OpenAI's formats, and the two of telephones (G.711)."""


@dataclass(frozen=True)
class Output:
    """What to make of the server's audio. Raises InvalidRequest for a rate that the format does not have."""

    format: str = "wav"
    sample_rate: int | None = None
    """None: the format's usual one."""
    speed: float = 1.0
    bit_rate: int | None = None
    """Bits per second; None: the format's usual one."""

    def __post_init__(self) -> None:
        rates = FORMATS[self.format].rates
        if self.sample_rate is not None and rates and self.sample_rate not in rates:
            known = ", ".join(map(str, rates))
            raise InvalidRequest(f"sample_rate is {self.sample_rate}; {self.format} has {known}")

    @property
    def content_type(self) -> str:
        """The MIME type."""
        return FORMATS[self.format].content_type


def audio_responses(*formats: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with these formats, for its schema."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"content": {FORMATS[name].content_type: binary for name in formats}, "description": "the audio"}}


class Encoder:
    """Makes one file of mono 16-bit samples, incrementally.

        encoder = Encoder(Output("mp3"), 24_000)
        for chunk in client.stream("Hello."):
            player.write(encoder.encode(chunk.to_bytes()))
        player.write(encoder.finish())

    The returned bytes, joined, are the file. Its header does not hold the length; that of `encode_file` does.
    """

    def __init__(self, output: Output, sample_rate: int) -> None:
        """sample_rate: that of the samples."""
        self._pipe = _Pipe()
        self._chain = _Chain(output, sample_rate, self._pipe)

    def encode(self, samples: bytes, rate: float = 1.0) -> bytes:
        """Takes raw little-endian samples and returns the bytes that are ready, which may be none.

        rate: how many times as fast these samples are played, beside the output's speed.
        """
        self._chain.write(np.frombuffer(samples, dtype="<i2"), rate)
        return self._take()

    def finish(self) -> bytes:
        """The rest of the file."""
        self._chain.close()
        return self._take()

    def _take(self) -> bytes:
        taken = bytes(self._pipe.taken)
        self._pipe.taken.clear()
        return taken


def encode_file(
    output: Output, sample_rate: int, samples: bytes, rates: Sequence[tuple[int, float]] | None = None
) -> bytes:
    """Makes a file of raw little-endian mono 16-bit samples. rates: of runs of samples, as `Encoder.encode` takes them;
    None: 1 for all."""
    buffer = io.BytesIO()
    chain = _Chain(output, sample_rate, buffer)
    left = np.frombuffer(samples, dtype="<i2")
    for length, rate in rates or [(len(left), 1.0)]:
        chain.write(left[:length], rate)
        left = left[length:]
    chain.close()
    return buffer.getvalue()


def write_file(output: Output, sample_rate: int, pieces: Iterable[bytes], sink: BinaryIO) -> None:
    """`encode_file` for samples that come in pieces, into a file that can seek."""
    chain = _Chain(output, sample_rate, sink)
    for piece in pieces:
        chain.write(np.frombuffer(piece, dtype="<i2"))
    chain.close()


class _Pipe:
    """A sink that cannot seek."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: bytes) -> int:
        self.taken += data
        return len(data)


class _Chain:
    """The steps from samples to a file."""

    def __init__(self, output: Output, sample_rate: int, sink: object) -> None:
        format = FORMATS[output.format]
        rate = output.sample_rate or format.sample_rate or sample_rate
        self._sample_rate = sample_rate
        self._output_speed = output.speed
        self._speed = 1.0
        self._tempo: _Tempo | None = None
        self._resampler = (
            None if rate == sample_rate else soxr.ResampleStream(sample_rate, rate, 1, dtype="int16", quality="HQ")
        )
        self._writer = _Writer(format, rate, sink, output.bit_rate or format.bit_rate)

    def write(self, samples: Samples, rate: float = 1.0) -> None:
        self._set_speed(self._output_speed * rate)
        self._resample(self._tempo.process(samples) if self._tempo else samples, last=False)

    def close(self) -> None:
        self._resample(self._tempo.finish() if self._tempo else np.empty(0, np.int16), last=True)
        self._writer.close()

    def _set_speed(self, speed: float) -> None:
        if speed == self._speed:
            return
        if self._tempo is not None:
            self._resample(self._tempo.finish(), last=False)
        self._speed = speed
        self._tempo = None if speed == 1 else _Tempo(speed, self._sample_rate)

    def _resample(self, samples: Samples, *, last: bool) -> None:
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        self._writer.write(samples)


class _Tempo:
    """FFmpeg's atempo: another speed at the same pitch (WSOLA)."""

    def __init__(self, speed: float, sample_rate: int) -> None:
        self._rate = sample_rate
        self._graph = graph = av.filter.Graph()
        source = graph.add_abuffer(
            sample_rate=sample_rate, format="s16", layout="mono", time_base=_seconds_of(sample_rate)
        )
        nodes = [source, *(graph.add("atempo", f"{tempo:.6f}") for tempo in _tempi(speed)), graph.add("abuffersink")]
        graph.link_nodes(*nodes).configure()
        self._speed = speed
        self._taken = self._given = 0  # samples

    def process(self, samples: Samples) -> Samples:
        """The samples that are ready, which may be none."""
        if len(samples):
            self._graph.push(_frame(samples, self._rate, self._taken))
            self._taken += len(samples)
        return self._pull()

    def finish(self) -> Samples:
        """The rest. It makes the length exact: atempo loses up to 30 ms at the end."""
        self._graph.push(None)
        missing = round(self._taken / self._speed) - self._given
        rest = self._pull()[:missing]
        return np.pad(rest, (0, max(0, missing - len(rest))))

    def _pull(self) -> Samples:
        ready: list[Any] = []
        while True:
            try:
                ready.append(self._graph.pull().to_ndarray()[0])
            except (av.BlockingIOError, av.EOFError):  # needs more; has no more
                samples: Samples = np.concatenate(ready) if ready else np.empty(0, np.int16)
                self._given += len(samples)
                return samples


def _tempi(speed: float) -> list[float]:
    """Factors within `_TEMPO` whose product is the speed."""
    low, high = _TEMPO
    if low <= speed <= high:
        return [speed]
    first = low if speed < low else high
    return [first, *_tempi(speed / first)]


class _Writer:
    """Encoder and container."""

    def __init__(self, format: Format, sample_rate: int, sink: object, bit_rate: int | None) -> None:
        options = {"flush_packets": "1", "fflags": "bitexact", **format.options}  # bitexact: no encoder name
        self._container = av.open(sink, "w", format=format.container, options=options)
        stream = self._container.add_stream(format.codec, rate=sample_rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.thread_count = 1  # many streams are encoded in parallel
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        self._stream = stream
        self._rate = sample_rate
        self._written = 0  # samples

    def write(self, samples: Samples) -> None:
        if not len(samples):
            return
        frame = _frame(samples, self._rate, self._written)
        self._written += len(samples)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.start_encoding()  # the header, if there was no sample
        self._container.mux(self._stream.encode(None))
        self._container.close()


def _frame(samples: Samples, sample_rate: int, position: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="s16", layout="mono")
    frame.sample_rate = sample_rate
    frame.pts = position
    frame.time_base = _seconds_of(sample_rate)
    return frame


def _seconds_of(sample_rate: int) -> Fraction:
    return Fraction(1, sample_rate)
