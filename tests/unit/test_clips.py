"""Reference clips that anybody may send."""

from __future__ import annotations

import base64
import io
import struct
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.voices.clips import ClipLimits, clip_bytes, read_clip
from tests.clips import BAD_CLIPS, encoded, tone


@pytest.mark.parametrize(("name", "message"), [(name, message) for name, (_, message) in BAD_CLIPS.items()])
def test_a_bad_clip_is_refused_with_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"the reference audio {message}"):
        read_clip(BAD_CLIPS[name][0](), ClipLimits())


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_is_read_as_mono(kind: str, channels: int) -> None:
    samples, rate = read_clip(encoded(tone(2.0, channels=channels), kind=kind), ClipLimits())
    assert rate == 24_000
    assert samples.shape == (48_000,)
    assert samples.dtype == np.float32
    assert abs(float(np.abs(samples).max()) - 0.3) < 0.1


def test_channels_are_averaged() -> None:
    left = tone(1.0)[:, 0]
    samples, _ = read_clip(encoded(np.stack([left, np.zeros_like(left)], axis=1), subtype="FLOAT"), ClipLimits())
    np.testing.assert_array_equal(samples, left / 2)


def test_a_wav_that_was_written_to_a_pipe_is_no_truncated_one() -> None:
    clip = bytearray(encoded(tone(1.0)))
    clip[4:8] = clip[40:44] = struct.pack("<I", 0xFFFF_FFFF)
    samples, _ = read_clip(bytes(clip), ClipLimits())
    assert len(samples) == 24_000


def test_no_more_is_decoded_than_the_header_says() -> None:
    """A FLAC header that understates its length gains nothing."""
    clip = bytearray(encoded(tone(10.0), kind="flac"))
    clip[22:26] = struct.pack(">I", 24_000)
    samples, _ = read_clip(bytes(clip), ClipLimits())
    assert len(samples) == 24_000


def test_limits_are_settings() -> None:
    clip = encoded(tone(3.0))
    read_clip(clip, ClipLimits(max_seconds=3.0))
    with pytest.raises(InvalidRequest, match=r"is 3.0 seconds long; at most 2 seconds are taken"):
        read_clip(clip, ClipLimits(max_seconds=2.0))
    with pytest.raises(InvalidRequest, match=r"has 0.1 MB; at most 0.0 MB are taken"):
        read_clip(clip, ClipLimits(max_bytes=1000))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_no_piece_of_a_file_raises_anything_else(cut: int) -> None:
    for kind in ("wav", "flac", "ogg", "mp3"):
        whole = encoded(tone(0.6), kind=kind)
        with suppress(InvalidRequest):
            read_clip(whole[: len(whole) * cut // 60], ClipLimits())


def test_damaged_bytes_raise_nothing_else() -> None:
    random = np.random.default_rng(0)
    for kind in ("wav", "flac", "ogg", "mp3"):
        whole = encoded(tone(0.6), kind=kind)
        for _ in range(30):
            damaged: npt.NDArray[np.uint8] = np.frombuffer(whole, dtype=np.uint8).copy()
            damaged[random.integers(0, min(200, len(damaged)), 5)] = random.integers(0, 256, 5)
            with suppress(InvalidRequest):
                read_clip(damaged.tobytes(), ClipLimits(max_seconds=10.0))


def test_the_bomb_is_one() -> None:
    """Ten kilobytes that hold an hour."""
    bomb = BAD_CLIPS["decompression bomb"][0]()
    assert len(bomb) < 1_000_000
    assert soundfile.info(io.BytesIO(bomb)).duration > 3000


def test_base64_is_decoded_and_files_are_left_as_they_are() -> None:
    for kind in ("wav", "flac", "ogg", "mp3"):
        clip = encoded(tone(0.6), kind=kind)
        assert clip_bytes(clip) == clip
        assert clip_bytes(base64.b64encode(clip)) == clip
    assert clip_bytes(b"") == b""
    assert clip_bytes(b"some text") == b"some text"
