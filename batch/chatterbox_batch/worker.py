"""A part to a file and its record; the parts of a row to one file."""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from chatterbox_batch.folder import read_file
from chatterbox_batch.parts import Part
from chatterbox_batch.records import Record, Records, file_name, part_file
from chatterbox_batch.speakers import Speaker, SpeechFailed
from chatterbox_client import Audio
from chatterbox_gateway.output import Output, encode_file, write_file

Samples = npt.NDArray[Any]  # [n] mono, of any type

FADE_SECONDS = 0.005
"""Of a part's edges at a pause: long enough to avoid clicks, too short to be audible as a fade."""


class Worker:
    """Speaks parts, from any number of threads at once."""

    def __init__(self, speaker: Speaker, records: Records, output: Output) -> None:
        self._speaker = speaker
        self._records = records
        self._output = output

    def speak(self, part: Part) -> Record:
        """Speaks a part and keeps its audio and its record. A part that has a record, as after the death of a worker
        that had spoken it, is not spoken again. Never raises: what fails is a record with an error."""
        record = Record(part.id, part.key, part.index, part.count, len(part.text), part.pause, part.seed)
        if part.error:
            return dataclasses.replace(record, error=part.error)
        try:
            found = self._records.find(part.key)
            return found if found is not None else self._spoken(part, record)
        except SpeechFailed as error:
            return dataclasses.replace(record, error=str(error))
        except Exception as error:  # disk full, a bug: a row with an error, and the run goes on
            return dataclasses.replace(record, error=f"{type(error).__name__}: {error}")

    def _spoken(self, part: Part, record: Record) -> Record:
        audio = self._speaker.speak(part.text, {**_inputs(part.inputs), "seed": part.seed})
        folder = self._records.folder
        if part.count == 1:
            file = file_name(part.id, self._output.format)
            folder.write(file, encode_file(self._output, audio.sample_rate, audio.to_bytes("s16")))
            seconds = audio.duration / self._output.speed
        else:
            file, seconds = part_file(part.key), audio.duration
            folder.write(file, audio.to_bytes("flac"))
        record = dataclasses.replace(record, file=file, seconds=seconds, rtf=_rtf(audio))
        self._records.put(record)
        return record


def join(records: Records, output: Output, parts: Sequence[Record]) -> Record:
    """Joins the parts of a row, in order, with their pauses, and returns the row's record. Never raises."""
    first = parts[0]
    row = dataclasses.replace(first, index=0, count=1, characters=sum(part.characters for part in parts))
    try:
        rate = soundfile.info(io.BytesIO(records.folder.read(first.file))).samplerate
        file = file_name(first.id, output.format)
        samples = 0

        def counted() -> Iterator[bytes]:
            nonlocal samples
            for piece in joined(records, parts):
                samples += len(piece)
                yield piece.tobytes()

        with tempfile.TemporaryFile() as local:  # encoders go back to the header; not every file system can
            write_file(output, rate, counted(), local)
            local.seek(0)
            with records.folder.writing(file) as stream:
                while block := local.read(1 << 20):
                    stream.write(block)
    except Exception as error:
        return dataclasses.replace(row, file="", rtf=None, error=f"{type(error).__name__}: {error}")
    spoken = sum(part.seconds for part in parts)
    rtf = sum(part.seconds * (part.rtf or 0) for part in parts) / spoken if spoken else None
    return dataclasses.replace(row, file=file, seconds=samples / rate / output.speed, rtf=rtf)


def joined(records: Records, parts: Sequence[Record]) -> Iterator[Samples]:
    """The audio of parts, and the silence between them. The edges of parts fade."""
    for number, part in enumerate(parts):
        samples, rate = soundfile.read(io.BytesIO(records.folder.read(part.file)), dtype="int16")
        yield fade(samples, round(FADE_SECONDS * rate), start=number > 0, end=number < len(parts) - 1)
        yield np.zeros(round(part.pause * rate), np.int16)


def fade(samples: Samples, length: int, *, start: bool, end: bool) -> Samples:
    """A copy whose edges rise from and fall to zero. length: samples of an edge."""
    faded: Samples = samples.copy()
    length = min(length, len(faded))
    ramp = np.arange(length) / max(length, 1)
    if start:
        faded[:length] = faded[:length] * ramp
    if end and length:
        faded[-length:] = faded[-length:] * ramp[::-1]
    return faded


def _inputs(encoded: str) -> dict[str, Any]:
    """The arguments of `Client.speak`; a clip is read wherever it lies."""
    inputs: dict[str, Any] = json.loads(encoded)
    clip = inputs.get("reference_audio")
    if clip is not None:
        inputs["reference_audio"] = clip.encode() if clip.startswith("data:") else read_file(clip)
    return inputs


def _rtf(audio: Audio) -> float | None:
    return None if audio.stats.get("rtf") is None else audio.rtf  # silence has none
