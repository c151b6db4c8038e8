"""Reference clips that anybody may send."""

from __future__ import annotations

import base64
import io
import struct
from contextlib import suppress

import numpy as np
import pytest
import soundfile

from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.voices.clips import ClipLimits, clip_bytes, read_clip
from tests.clips import BAD_CLIPS, RECORDINGS, encoded, recorded, tagged, tone


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


@pytest.mark.parametrize("kind", RECORDINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_phones_and_browsers_record_is_read_as_mono(kind: str, channels: int) -> None:
    wave = tone(2.0, 48_000, channels=channels)
    wave[:, channels - 1] *= 0.5
    samples, rate = read_clip(recorded(wave, kind=kind), ClipLimits())
    assert rate == 48_000
    assert samples.dtype == np.float32
    assert 96_000 <= len(samples) <= 99_000  # encoders pad to whole frames
    expected = np.abs(wave.mean(axis=1)).max()
    assert np.abs(samples).max() == pytest.approx(expected, rel=0.15)


def test_an_amr_recording_is_read() -> None:
    """PyAV cannot write one: any bytes are some sound."""
    random = np.random.default_rng(0)
    frames = (b"\x3c" + random.bytes(31) for _ in range(100))  # 20 ms each, of 12.2 kbit/s
    samples, rate = read_clip(b"#!AMR\n" + b"".join(frames), ClipLimits())
    assert (len(samples), rate) == (16_000, 8000)


def test_packets_of_a_few_samples_are_not_decoded_for_ever() -> None:
    clip = recorded(tone(0.6, 48_000), kind="mkv", packet=8)
    assert len(read_clip(clip, ClipLimits(max_seconds=10.0))[0]) == 28_800
    with pytest.raises(InvalidRequest, match="has more than 2000 packets"):
        read_clip(clip, ClipLimits(max_seconds=1.0))


def test_lossless_recordings_are_read_exactly() -> None:
    wave = tone(1.0, 48_000, channels=2)
    wave[:, 1] = 0
    for kind in ("m4a, lossless", "caf", "aifc", "wav to a pipe"):
        samples, _ = read_clip(recorded(wave, kind=kind), ClipLimits())
        assert np.abs(samples - wave[:, 0] / 2).max() < 2 / 32768, kind


def test_an_mp3_may_have_a_large_picture_and_padding() -> None:
    mp3 = encoded(tone(2.0), kind="mp3")
    for clip in (tagged(mp3), tagged(mp3, 10, 100_000), bytes(5000) + mp3, b"\r\n" + mp3, mp3 + bytes(200_000)):
        samples, _ = read_clip(clip, ClipLimits())
        assert 47_000 <= len(samples) <= 51_000
    with pytest.raises(InvalidRequest, match="is truncated"):
        read_clip(tagged(mp3[: len(mp3) // 2]), ClipLimits())


def test_channels_are_averaged() -> None:
    left = tone(1.0)[:, 0]
    samples, _ = read_clip(encoded(np.stack([left, np.zeros_like(left)], axis=1), subtype="FLOAT"), ClipLimits())
    np.testing.assert_array_equal(samples, left / 2)


@pytest.mark.parametrize("riff", [0, 0xFFFF_FFFF, 48_036])
@pytest.mark.parametrize("data", [0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0xFFFF_F000])
def test_a_wav_that_was_written_to_a_pipe_is_no_truncated_one(riff: int, data: int) -> None:
    whole = encoded(tone(1.0))
    clip = bytearray(whole)
    clip[4:8], clip[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    samples, _ = read_clip(bytes(clip), ClipLimits())
    np.testing.assert_array_equal(samples, read_clip(whole, ClipLimits())[0])


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


KINDS = ("wav", "flac", "ogg", "mp3", "aiff")


def whole_files() -> dict[str, bytes]:
    """Of every format."""
    files = {kind: encoded(tone(0.6), kind=kind) for kind in KINDS}
    return files | {kind: recorded(tone(0.6, 48_000), kind=kind) for kind in RECORDINGS}


@pytest.mark.parametrize("kind", whole_files())
def test_no_piece_of_a_file_raises_anything_else(kind: str) -> None:
    whole = whole_files()[kind]
    for cut in range(1, 60, 3):
        with suppress(InvalidRequest):
            read_clip(whole[: len(whole) * cut // 60], ClipLimits())


@pytest.mark.parametrize("kind", whole_files())
def test_damaged_bytes_raise_nothing_else(kind: str) -> None:
    random = np.random.default_rng(0)
    whole = np.frombuffer(whole_files()[kind], dtype=np.uint8)
    for reach in (50, 500, len(whole)):
        for _ in range(15):
            damaged = whole.copy()
            places = random.integers(0, min(reach, len(whole)), 5)
            damaged[places] = random.integers(0, 256, 5)
            with suppress(InvalidRequest):
                read_clip(damaged.tobytes(), ClipLimits(max_seconds=10.0))


def test_the_bomb_is_one() -> None:
    """Ten kilobytes that hold an hour."""
    bomb = BAD_CLIPS["decompression bomb"][0]()
    assert len(bomb) < 1_000_000
    assert soundfile.info(io.BytesIO(bomb)).duration > 3000


def test_base64_and_data_uris_are_decoded_and_files_are_left_as_they_are() -> None:
    for clip in whole_files().values():
        text = base64.b64encode(clip)
        lines = base64.encodebytes(clip)
        assert clip_bytes(clip) == clip
        for sent in (text, lines, lines.replace(b"\n", b"\r\n"), b" " + text + b"\n"):
            assert clip_bytes(sent) == clip
            assert clip_bytes(b"data:audio/wav;base64," + sent) == clip
    assert clip_bytes(b"DATA:audio/webm;codecs=opus;Base64,AAEC") == b"\0\1\2"
    assert clip_bytes(b"") == b""


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"some text", "is text that is not base64"),
        (b"UklGRg", "is text that is not base64: Incorrect padding"),
        (b"UklG\nRi!QUF=", "is text that is not base64"),
        (b"data:audio/wav;base64,UklG?", "is text that is not base64"),
        (b"data:audio/wav,UklG", "is a data: URI that is not base64"),
        (b"data:", "is a data: URI that is not base64"),
        (b"/home/me/clip.wav", "is text that is not base64"),
    ],
)
def test_text_that_is_not_base64_is_refused_as_such(sent: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"the reference audio {message}"):
        clip_bytes(sent)
