"""Decoding what phones and browsers record, through PyAV (FFmpeg): M4A, WebM, AMR, and what libsndfile cannot read.

FFmpeg knows hundreds of formats, some of which name other files or addresses. Only the containers and codecs listed
here are opened.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import av
import numpy as np
from av.container import InputContainer

from chatterbox_engine.types import Samples
from chatterbox_engine.voices.clip_errors import unreadable, wrong

_CONTAINERS = ("mov", "matroska", "mp3", "aac", "amr", "caf", "aiff", "wav")
_CODECS = (
    *("aac", "aac_latm", "alac", "opus", "libopus", "vorbis", "flac", "mp3", "mp3float", "amrnb", "amrwb"),
    *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s8"),
    *(f"pcm_{kind}{order}" for kind in ("s16", "s24", "s32", "f32", "f64") for order in ("le", "be")),
)
_PACKETS = 2000
"""A second, at most. Packets of a few samples would cost 20 us each, and an array."""

_GUESSED = {"mp3", "aac", "amr"}
"""Containers whose headers state no length: FFmpeg makes one of the first packets' bit rate."""


def decode(data: bytes, check: Callable[[int, int, float | None], None], max_seconds: float) -> tuple[Samples, int]:
    """The samples of a recording, [n] float32, channels averaged, and their rate.

    check: called with the rate, the channels and the seconds (None: not stated) that the header tells, before anything
    is decoded; may raise. Raises InvalidRequest for what cannot be read, is truncated or longer than `max_seconds`.
    """
    options = {"format_whitelist": ",".join(_CONTAINERS), "codec_whitelist": ",".join(_CODECS)}
    try:
        with av.open(io.BytesIO(data), "r", options=options, metadata_errors="ignore") as container:
            if not container.streams.audio or container.streams.audio[0].codec_context is None:
                raise unreadable("no audio that is known")
            return _decode(container, check, max_seconds)
    except av.error.FFmpegError as error:
        raise unreadable(error.strerror) from error


def _decode(
    container: InputContainer, check: Callable[[int, int, float | None], None], max_seconds: float
) -> tuple[Samples, int]:
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    seconds = _stated_seconds(container)
    check(stream.codec_context.sample_rate, stream.codec_context.channels, seconds)
    rate, parts, count = 0, [], 0
    for frame in _frames(container, int(_PACKETS * max_seconds)):
        if not rate:
            rate = frame.sample_rate  # a header may state half of it (HE-AAC)
            check(rate, frame.layout.nb_channels, None)
            resampler = av.AudioResampler(format="fltp")
        frame.pts = None
        try:
            parts += [part.to_ndarray().mean(axis=0) for part in resampler.resample(frame)]
        except ValueError as error:
            raise wrong("changes its rate or channels on the way") from error
        count += frame.samples
        if count > max_seconds * rate:
            raise wrong(f"is longer than {max_seconds:g} seconds")
    if seconds is not None and count < 0.9 * seconds * rate - rate // 10:
        raise wrong(f"is truncated: it should hold {seconds:.1f} seconds and holds {count / max(1, rate):.1f}")
    return np.concatenate(parts or [np.zeros(0)]).astype(np.float32), rate


def _stated_seconds(container: InputContainer) -> float | None:
    stream = container.streams.audio[0]
    if container.format.name in _GUESSED:
        return None
    if stream.duration and stream.time_base is not None:  # 0: browsers record without knowing it
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _frames(container: InputContainer, limit: int) -> Iterator[av.AudioFrame]:
    """What can be decoded of at most `limit` packets. A few may be junk, such as tags and padding between those of an
    MP3."""
    bad = 0
    for number, packet in enumerate(container.demux(container.streams.audio[0])):
        if number > limit:
            raise wrong(f"has more than {limit} packets")
        try:
            yield from packet.decode()
        except av.error.InvalidDataError as error:
            bad += 1
            if bad > 5 + number // 20:
                raise unreadable(error.strerror) from error
