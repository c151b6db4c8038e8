"""M4B: AAC in MP4 with chapter marks and a cover (FFmpeg)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

from chatterbox_batch.books import BookError

Samples = npt.NDArray[np.float32]  # [n] mono, in [-1, 1]

_MILLISECONDS = Fraction(1, 1000)


def write_m4b(
    path: Path,
    samples: Iterable[Samples],
    rate: int,
    chapters: Sequence[tuple[str, float]],
    *,
    bit_rate: int,
    tags: Mapping[str, str],
    cover: bytes = b"",
) -> None:
    """Writes a file. chapters: title and seconds, in order; tags: FFmpeg's names.

    Raises BookError for a cover that is no picture, OSError when the file cannot be written.
    """
    picture = _Cover(cover) if cover else None
    options = {"brand": "M4B ", "movflags": "faststart", "fflags": "bitexact"}  # bitexact: no encoder name
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = bit_rate
        container.metadata.update({"genre": "Audiobook", **tags})
        container.set_chapters(_marks(chapters))
        if picture is not None:
            picture.write(container)
        written = 0
        for piece in filter(len, samples):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, written, Fraction(1, rate)
            written += len(piece)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def peak_of(path: Path) -> float:
    """The highest sample of a file, in dB of full scale; -inf for silence."""
    with av.open(str(path)) as container:
        highest = max((float(np.abs(frame.to_ndarray()).max()) for frame in container.decode(audio=0)), default=0.0)
    return 20 * math.log10(highest) if highest else -math.inf


def _marks(chapters: Sequence[tuple[str, float]]) -> list[av.container.Chapter]:
    marks: list[av.container.Chapter] = []
    start = 0.0
    for number, (title, seconds) in enumerate(chapters):
        end = start + seconds
        marks.append(
            {
                "id": number,
                "start": round(start * 1000),
                "end": round(end * 1000),
                "time_base": _MILLISECONDS,
                "metadata": {"title": title},
            }
        )
        start = end
    return marks


class _Cover:
    """A picture as the packet that a container takes."""

    def __init__(self, content: bytes) -> None:
        try:
            self._source = av.open(io.BytesIO(content), "r")
            self._stream = self._source.streams.video[0]
            self._packet = next(packet for packet in self._source.demux(self._stream) if packet.size)
        except (av.FFmpegError, IndexError, StopIteration) as error:
            raise BookError(f"the cover is no picture that can be read: {error}") from error

    def write(self, container: av.container.OutputContainer) -> None:
        """Adds it as the container's attached picture. Called before audio is written."""
        stream = container.add_stream_from_template(self._stream)
        stream.disposition = Disposition.attached_pic
        self._packet.stream = stream
        self._packet.pts = self._packet.dts = 0
        container.mux(self._packet)
        self._source.close()
