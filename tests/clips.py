"""Reference clips for tests, good and bad."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile

RECORDINGS: dict[str, tuple[str, str, dict[str, str]]] = {
    "m4a": ("ipod", "aac", {}),
    "m4a, header first": ("ipod", "aac", {"movflags": "faststart"}),
    "m4a, lossless": ("ipod", "alac", {}),
    "mp4 of a browser": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "3gp": ("3gp", "aac", {}),
    "webm": ("webm", "libopus", {}),
    "webm of a browser": ("webm", "libopus", {"live": "1"}),
    "ogg, opus": ("ogg", "libopus", {}),
    "aac": ("adts", "aac", {}),
    "mkv": ("matroska", "pcm_s16le", {}),
    "caf": ("caf", "pcm_s16be", {}),
    "caf, ima4": ("caf", "adpcm_ima_qt", {}),
    "aifc": ("aiff", "pcm_s16le", {}),
    "mp3 without a length": ("mp3", "libmp3lame", {"write_xing": "0"}),
    "wav to a pipe": ("wav", "pcm_s16le", {}),
}
"""What phones and browsers record: container, codec and the container's options of FFmpeg."""

SUBTYPES = {
    "wav": "PCM_16",
    "flac": "PCM_16",
    "ogg": "VORBIS",
    "mp3": "MPEG_LAYER_III",
    "aiff": "PCM_16",
    "au": "PCM_16",
}


def tone(seconds: float, rate: int = 24_000, *, channels: int = 1, pitch: float = 130.0) -> npt.NDArray[np.float32]:
    """A gliding harmonic tone, [n, channels]: voiced, and another one for each pitch."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(pitch + 40 * np.sin(1.9 * time)) / rate
    wave = sum(np.sin(k * phase) / k for k in range(1, 8))
    return np.tile((0.3 * wave / np.abs(wave).max()).astype(np.float32)[:, None], channels)


def encoded(samples: npt.NDArray[Any], rate: int = 24_000, *, kind: str = "wav", subtype: str | None = None) -> bytes:
    """A file of the samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind.upper(), subtype=subtype or SUBTYPES[kind])
    return buffer.getvalue()


class _Pipe:
    """What a recorder writes to when it cannot go back."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: bytes) -> int:
        self.taken += data
        return len(data)


def recorded(samples: npt.NDArray[Any], rate: int = 48_000, *, kind: str, packet: int = 1024) -> bytes:
    """A file of RECORDINGS with the samples, [n, channels]; packet: samples of each, where the codec leaves it open."""
    container, codec, options = RECORDINGS[kind]
    layout = "stereo" if samples.shape[1] == 2 else "mono"
    pipe = _Pipe()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        with av.open(pipe if "browser" in kind or "pipe" in kind else path, "w", container, options=options) as writer:
            stream = writer.add_stream(codec, rate=rate, layout=layout)
            writer.start_encoding()
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            context = stream.codec_context
            resampler = av.AudioResampler(context.format, layout, rate, frame_size=context.frame_size or packet)
            for part in (*resampler.resample(frame), *resampler.resample(None), None):
                writer.mux(stream.encode(part))
        return path.read_bytes() if path.exists() else bytes(pipe.taken)


def tagged(mp3: bytes, cover: int = 3_000_000, padding: int = 0) -> bytes:
    """An MP3 file with an ID3 tag of so many bytes of a picture, and zeros before the first frame."""
    picture = b"\0image/png\0\3\0\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(cover)
    frame = b"APIC" + len(picture).to_bytes(4, "big") + bytes(2) + picture
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + bytes(padding) + mp3


def _bomb() -> bytes:
    """An hour of silence: a few hundred kilobytes of FLAC."""
    buffer = io.BytesIO()
    block = np.zeros(1 << 20, dtype=np.int16)
    with soundfile.SoundFile(buffer, "w", 24_000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(83):
            file.write(block)
    return buffer.getvalue()


def _endless() -> bytes:
    """A FLAC file whose header does not say how long it is."""
    clip = bytearray(encoded(tone(1.0), kind="flac"))
    clip[21] &= 0xF0
    clip[22:26] = bytes(4)
    return bytes(clip)


def _half(kind: str) -> bytes:
    whole = recorded(tone(4.0, 48_000), kind=kind) if kind in RECORDINGS else encoded(tone(4.0), kind=kind)
    return _half_of(whole)


def _half_of(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


BAD_CLIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "text": (
        lambda: b"This is a text file, not a clip.\n" * 100,
        "is (damaged, truncated or not a WAV|text that is not base64)",
    ),
    "truncated wav": (lambda: _half("wav"), "is truncated"),
    "truncated flac": (lambda: _half("flac"), "is damaged, truncated or not"),
    "truncated ogg": (lambda: _half("ogg"), "is truncated"),
    "long truncated ogg": (lambda: _half_of(encoded(tone(20.0), kind="ogg")), "is truncated"),
    "truncated opus": (lambda: _half("ogg, opus"), "is truncated"),
    "truncated m4a": (lambda: _half("m4a"), "is damaged, truncated or not"),
    "truncated m4a, header first": (lambda: _half("m4a, header first"), "is truncated"),
    "truncated webm": (lambda: _half("webm"), "is truncated"),
    "truncated caf": (lambda: _half("caf, ima4"), "is truncated"),
    "truncated aiff": (lambda: _half("aiff"), "is truncated"),
    "truncated mp3": (lambda: _half("mp3"), "is truncated"),
    "no samples": (lambda: encoded(np.zeros((0, 1))), "holds no samples"),
    "too short": (lambda: encoded(tone(0.3)), r"is 0\.30 seconds long"),
    "silence": (lambda: encoded(np.zeros((48_000, 1))), "is silent"),
    "ten minutes": (lambda: encoded(np.zeros((600 * 8000, 1), np.int16), 8000), r"is 600\.0 seconds long"),
    "too many bytes": (lambda: bytes(40_000_000), r"has 40\.0 MB; at most 33\.6 MB"),
    "1 kHz": (lambda: encoded(tone(2.0, 1000), 1000), "has 1000 samples a second"),
    "64 channels": (lambda: encoded(tone(1.0, channels=64)), "has 64 channels"),
    "not finite": (
        lambda: encoded(np.full((24_000, 1), np.nan, np.float32), subtype="FLOAT"),
        "holds samples that are",
    ),
    "too loud": (lambda: encoded(1e30 * tone(1.0), subtype="FLOAT"), r"holds samples up to 3e\+29"),
    "decompression bomb": (_bomb, r"is 36\d\d\.\d seconds long"),
    "unknown length": (_endless, "does not state its length"),
    "bomb without a stated length": (
        lambda: recorded(np.zeros((130 * 8000, 1), np.float32), 8000, kind="aac"),
        "is longer than 120 seconds",
    ),
    "m4a of three minutes": (
        lambda: recorded(np.zeros((180 * 8000, 1), np.float32), 8000, kind="m4a"),
        r"is 180\.\d seconds long",
    ),
    "au": (lambda: encoded(tone(1.0), kind="au"), "is a AU file"),
    "a list of other files": (lambda: b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "is (damaged|text)"),
}
"""Each with what the refusal says of it."""
