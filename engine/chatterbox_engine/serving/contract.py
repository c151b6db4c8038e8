"""The request contract: tensors of a Triton request to a SynthesisRequest, and a result back to tensors.

Knows names, types and ranges; imports neither Triton nor torch. Batch dimension first, so a scalar is [1, 1].
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from chatterbox_engine import presets
from chatterbox_engine.checkpoint.families import ENGLISH, Family
from chatterbox_engine.errors import InvalidRequest, quote
from chatterbox_engine.serving.audio import FORMATS, encode
from chatterbox_engine.synthesis.streaming import LARGEST, ChunkPolicy
from chatterbox_engine.t3.schedule import MAX_STEPS
from chatterbox_engine.text import lexicon
from chatterbox_engine.text.clean import validate_text
from chatterbox_engine.text.passages import Passage
from chatterbox_engine.text.pipeline import Script, Segment
from chatterbox_engine.types import (
    GUARDS,
    MARKUPS,
    NORMALIZATIONS,
    PRIORITIES,
    SAMPLE_RATE,
    SynthesisChunk,
    SynthesisRequest,
    SynthesisResult,
)
from chatterbox_engine.voices.clips import clip_bytes

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Number:
    """A numeric input and the values it takes."""

    low: float
    high: float
    open_low: bool = False  # the lower bound itself is not allowed
    kind: type[float] | type[int] = float

    def check(self, name: str, value: float) -> float:
        """The value; raises InvalidRequest outside the range and for NaN."""
        if not self._holds(value):
            bounds = f"above {self.low:g} and at most" if self.open_low else f"from {self.low:g} to"
            shown = repr(value) if self._holds(float(f"{value:g}")) else f"{value:g}"  # 1.0000001 is not "1"
            raise InvalidRequest(f"{name} is {shown}; it must be {bounds} {self.high:g}")
        return value

    def _holds(self, value: float) -> bool:
        return self.low < value <= self.high if self.open_low else self.low <= value <= self.high


SAMPLING = {
    "exaggeration": Number(0.0, 2.0),
    "cfg_weight": Number(0.0, 3.0),
    "temperature": Number(0.0, 5.0),
    "top_p": Number(0.0, 1.0, open_low=True),
    "min_p": Number(0.0, 1.0),
    "repetition_penalty": Number(0.0, 10.0, open_low=True),
    "top_k": Number(0, 1_000_000, kind=int),
    "num_steps": Number(1, MAX_STEPS, kind=int),
    "time_shift_tau": Number(0.0, 10.0),
    "omnivoice_schedule_t_shift": Number(0.0, 10.0),
    "position_temperature": Number(0.0, 10.0),
}

TEXTS = ("text", "voice", "language", "text_normalization", "markup", "lexicon", "preset", "format", "priority")
INPUTS = (*TEXTS, "reference_audio", *SAMPLING, "seed", "max_seconds", "word_times", "guard", "guard_retries")
OUTPUTS = ("audio", "audio_base64", "sample_rate", "speech_tokens", "stats", "words")

RETRIES = Number(0, 5, kind=int)

CHUNKING = {"first_chunk_tokens": "first", "chunk_tokens": "chunk"}
"""Inputs that only streams have, and the fields of ChunkPolicy that they set."""

TEXT = "text"
"""The format of an answer that only shows what would be spoken."""

STREAM_FORMATS = ("pcm", "s16")
STREAM_OUTPUTS = (*OUTPUTS, "chunk_index", "is_last")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a model takes: its limits, and the defaults of its requests."""

    max_text_chars: int
    max_seconds: float
    family: Family = ENGLISH
    preset: str = "upstream"
    """That of requests which name none."""


@dataclass(frozen=True)
class Call:
    """A parsed request and the form its audio is wanted in."""

    request: SynthesisRequest
    format: str


@dataclass(frozen=True)
class StreamCall(Call):
    """A parsed request for a stream."""

    policy: ChunkPolicy


def parse_stream(tensors: Tensors, terms: Terms) -> StreamCall:
    """`parse` for a request whose answer comes in chunks."""
    limits = Number(1, LARGEST)
    sizes = {
        field: int(limits.check(name, _scalar(tensors, name))) for name, field in CHUNKING.items() if name in tensors
    }
    others = {name: tensor for name, tensor in tensors.items() if name not in CHUNKING}
    call = parse(others, terms)
    if call.format not in STREAM_FORMATS:
        raise InvalidRequest(f"format is {quote(call.format)}; a stream's must be one of {', '.join(STREAM_FORMATS)}")
    return StreamCall(call.request, call.format, ChunkPolicy(**sizes))


def parse(tensors: Tensors, terms: Terms) -> Call:
    """Checks a request's tensors. Raises InvalidRequest saying what is wrong with which input."""
    family = terms.family
    _refuse_unsupported(tensors, family)
    audio_format = _text(tensors, "format", "pcm")
    if audio_format not in (*FORMATS, TEXT):
        raise InvalidRequest(f"format is {quote(audio_format)}; it must be one of {', '.join((*FORMATS, TEXT))}")
    language = _text(tensors, "language", family.language).lower()
    if language not in family.languages:
        raise InvalidRequest(f"language is {quote(language)}; {family.title} speaks {', '.join(family.languages)}")
    if "text" not in tensors:
        raise InvalidRequest("the input 'text' is missing")
    chosen: dict[str, Any] = {
        name: limits.kind(limits.check(name, _number(tensors, name)))
        for name, limits in SAMPLING.items()
        if name in tensors
    }
    seconds = Number(0.0, terms.max_seconds, open_low=True)
    request = SynthesisRequest(
        text=validate_text(_bytes(tensors, "text"), terms.max_text_chars),
        seed=int(_scalar(tensors, "seed")) if "seed" in tensors else secrets.randbits(63),
        voice=_text(tensors, "voice", "default"),
        reference_audio=clip_bytes(_bytes(tensors, "reference_audio")) if "reference_audio" in tensors else None,
        language=language,
        text_normalization=_choice(tensors, "text_normalization", NORMALIZATIONS),
        markup=_choice(tensors, "markup", MARKUPS),
        lexicon=lexicon.parse(_text(tensors, "lexicon", "{}"), "lexicon"),
        sampling=replace(presets.sampling(family, _text(tensors, "preset", terms.preset)), **chosen),
        max_seconds=seconds.check("max_seconds", _number(tensors, "max_seconds"))
        if "max_seconds" in tensors
        else min(SynthesisRequest.max_seconds, terms.max_seconds),
        word_times=_boolean(tensors, "word_times"),
        guard=_choice(tensors, "guard", GUARDS),
        guard_retries=_retries(tensors),
        priority=_choice(tensors, "priority", PRIORITIES),
    )
    return Call(request, audio_format)


def describe(terms: Terms) -> dict[str, str]:
    """What requests may choose: `parameters` and `presets`, JSON objects, `languages`, a JSON list, `language`,
    the default, and `max_characters`."""
    supported = terms.family.inputs
    defaults = presets.sampling(terms.family, terms.preset)
    parameters = {
        name: {
            "default": getattr(defaults, name),
            "minimum": limits.low,
            "maximum": limits.high,
            "integer": limits.kind is int,
        }
        for name, limits in SAMPLING.items()
        if name in supported
    }
    named = {name: chosen for name, chosen in presets.PRESETS.items() if set(chosen) <= set(supported)}
    return {
        "parameters": json.dumps(parameters),
        "presets": json.dumps(named),
        "languages": json.dumps(terms.family.languages),
        "language": terms.family.language,
        "max_characters": str(terms.max_text_chars),
    }


def outputs(result: SynthesisResult, audio_format: str) -> dict[str, npt.NDArray[Any]]:
    """The answer's tensors, each with its batch dimension."""
    encoded = b""
    samples = result.samples
    if audio_format != "pcm":
        encoded = base64.b64encode(encode(samples, audio_format))
        samples = samples[:0]
    return {
        "audio": samples.astype(np.float32)[None],
        "audio_base64": np.array([[encoded]], dtype=np.object_),
        "sample_rate": np.array([[SAMPLE_RATE]], dtype=np.int32),
        "speech_tokens": result.speech_tokens.astype(np.int32)[None],
        "stats": np.array([[json.dumps(result.stats).encode()]], dtype=np.object_),
        "words": np.array([[json.dumps(list(map(asdict, result.words))).encode()]], dtype=np.object_),
    }


def text_outputs(script: Script) -> dict[str, npt.NDArray[Any]]:
    """The tensors of an answer that shows the text, stage by stage, in its statistics."""
    stages = [{"stage": name, "passages": list(map(_shown, passages))} for name, passages in script.stages]
    segments = [_shown(segment) for segment in script.segments]
    stats = {"stages": stages, "segments": segments, "lead": script.lead, "notes": list(script.notes)}
    return outputs(SynthesisResult(np.zeros(0, np.float32), np.zeros(0, np.int32), stats), "pcm")


def _shown(part: Passage | Segment) -> dict[str, Any]:
    start, end = part.text.source()
    place = {"start": start, "end": end, "language": part.language}
    return {"text": part.text.string, **place, "pause": part.pause, "rate": part.rate}


def chunk_outputs(chunk: SynthesisChunk, audio_format: str) -> dict[str, npt.NDArray[Any]]:
    """A chunk's tensors. Only the last one's statistics have entries, but for `rate`."""
    rate = {"rate": chunk.rate} if chunk.rate != 1 else {}
    result = SynthesisResult(chunk.samples, chunk.speech_tokens, {**(chunk.stats or {}), **rate}, chunk.words)
    return {
        **outputs(result, audio_format),
        "chunk_index": np.array([[chunk.index]], dtype=np.int32),
        "is_last": np.array([[chunk.last]], dtype=np.bool_),
    }


def _refuse_unsupported(tensors: Tensors, family: Family) -> None:
    """An input that this server would have to ignore is an error, never dropped silently."""
    for name in tensors:
        if name not in INPUTS:
            raise InvalidRequest(f"unknown input {quote(name)}; the inputs are {', '.join(INPUTS)}")
        if name in SAMPLING and name not in family.inputs:
            raise InvalidRequest(f"{name} has no effect on {family.title}, which supports {', '.join(family.inputs)}")
    if "reference_audio" in tensors and "voice" in tensors:
        raise InvalidRequest("voice and reference_audio exclude each other")


def _scalar(tensors: Tensors, name: str) -> Any:
    value = tensors[name]
    if value.ndim and value.shape[0] > 1:
        raise InvalidRequest(
            f"{name} has a batch of {value.shape[0]}: send one text a request, the server batches requests itself"
        )
    if value.size != 1:
        raise InvalidRequest(f"{name} must hold one value, it has the shape {list(value.shape)}")
    return value.reshape(-1)[0]


def _number(tensors: Tensors, name: str) -> float:
    return float(_scalar(tensors, name))


def _retries(tensors: Tensors) -> int:
    if "guard_retries" not in tensors:
        return SynthesisRequest.guard_retries
    if _text(tensors, "guard", GUARDS[0]) != "retry":
        raise InvalidRequest("guard_retries needs the guard retry")
    return int(RETRIES.check("guard_retries", _number(tensors, "guard_retries")))


def _boolean(tensors: Tensors, name: str) -> bool:
    """False unless it is given."""
    return name in tensors and bool(_scalar(tensors, name))


def _bytes(tensors: Tensors, name: str) -> bytes:
    value = _scalar(tensors, name)
    return value if isinstance(value, bytes) else str(value).encode()


def _choice(tensors: Tensors, name: str, words: tuple[str, ...]) -> str:
    """One of some words, by default the first."""
    word = _text(tensors, name, words[0])
    if word not in words:
        raise InvalidRequest(f"{name} is {quote(word)}; it must be one of {', '.join(words)}")
    return word


def _text(tensors: Tensors, name: str, default: str) -> str:
    if name not in tensors:
        return default
    try:
        return _bytes(tensors, name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not valid UTF-8") from error
