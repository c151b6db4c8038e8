"""The request contract of the server's `chatterbox` model: arguments to tensors, and answers to `Audio`.

Beside `transports.sse`, for Triton's JSON, this is the only place that knows the names and types of the tensors. Every
input is [1, 1]: a batch of one, one value.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import operator
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from chatterbox_client.audio import Audio, Chunk, Word
from chatterbox_client.errors import InvalidRequest, ServerError, quote

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class RequestContext:
    """What accompanies one request to the server."""

    request_id: str = ""
    """Stands in the server's log."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent beside those of the client; over gRPC as metadata."""


NO_CONTEXT = RequestContext()

OUTPUTS = ("audio", "sample_rate", "speech_tokens", "stats")
STREAM_OUTPUTS = (*OUTPUTS, "chunk_index", "is_last")
WORDS = "words"
"""The output that only requests with `word_times` need."""

P = ParamSpec("P")
SelfT = TypeVar("SelfT")
R = TypeVar("R")


def speech_request(
    text: str,
    *,
    voice: str | None = None,
    reference_audio: str | os.PathLike[str] | bytes | None = None,
    language: str | None = None,
    text_normalization: str | None = None,
    markup: str | None = None,
    lexicon: Mapping[str, str] | None = None,
    preset: str | None = None,
    exaggeration: float | None = None,
    cfg_weight: float | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    top_k: int | None = None,
    num_steps: int | None = None,
    time_shift_tau: float | None = None,
    omnivoice_schedule_t_shift: float | None = None,
    position_temperature: float | None = None,
    seed: int | None = None,
    max_seconds: float | None = None,
    priority: str | None = None,
    word_times: bool | None = None,
    guard: str | None = None,
    guard_retries: int | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """The input tensors of one request, each [1, 1]; what is None is left out, so the server's default holds.

    Raises InvalidRequest for a value that its tensor cannot carry, OSError for a reference file that cannot be read.
    """
    tensors = {
        "text": _bytes("text", text),
        "voice": _bytes("voice", voice),
        "reference_audio": _bytes("reference_audio", _contents(reference_audio)),
        "language": _bytes("language", language),
        "text_normalization": _bytes("text_normalization", text_normalization),
        "markup": _bytes("markup", markup),
        "lexicon": _bytes("lexicon", None if lexicon is None else json.dumps(dict(lexicon))),
        "preset": _bytes("preset", preset),
        "exaggeration": _float("exaggeration", exaggeration),
        "cfg_weight": _float("cfg_weight", cfg_weight),
        "temperature": _float("temperature", temperature),
        "top_p": _float("top_p", top_p),
        "min_p": _float("min_p", min_p),
        "repetition_penalty": _float("repetition_penalty", repetition_penalty),
        "top_k": _integer("top_k", top_k, np.int32),
        "num_steps": _integer("num_steps", num_steps, np.int32),
        "time_shift_tau": _float("time_shift_tau", time_shift_tau),
        "omnivoice_schedule_t_shift": _float("omnivoice_schedule_t_shift", omnivoice_schedule_t_shift),
        "position_temperature": _float("position_temperature", position_temperature),
        "seed": _integer("seed", seed, np.int64),
        "max_seconds": _float("max_seconds", max_seconds),
        "priority": _bytes("priority", priority),
        "guard": _bytes("guard", guard),
        "guard_retries": _integer("guard_retries", guard_retries, np.int32),
        "word_times": None if word_times is None else np.full((1, 1), bool(word_times)),
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def stream_request(
    text: str | Iterable[str] | AsyncIterable[str],
    *,
    voice: str | None = None,
    reference_audio: str | os.PathLike[str] | bytes | None = None,
    language: str | None = None,
    text_normalization: str | None = None,
    markup: str | None = None,
    lexicon: Mapping[str, str] | None = None,
    preset: str | None = None,
    exaggeration: float | None = None,
    cfg_weight: float | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    top_k: int | None = None,
    num_steps: int | None = None,
    time_shift_tau: float | None = None,
    omnivoice_schedule_t_shift: float | None = None,
    position_temperature: float | None = None,
    seed: int | None = None,
    max_seconds: float | None = None,
    priority: str | None = None,
    word_times: bool | None = None,
    guard: str | None = None,
    guard_retries: int | None = None,
    first_chunk_tokens: int | None = None,
    chunk_tokens: int | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """`speech_request` of a string (`Bound.of` splits pieces), and the audio of the first chunks in tokens of 40 ms."""
    if not isinstance(text, str):
        raise InvalidRequest(f"text must be a string, not {quote(text)}")
    return speech_request(
        text,
        voice=voice,
        reference_audio=reference_audio,
        language=language,
        text_normalization=text_normalization,
        markup=markup,
        lexicon=lexicon,
        preset=preset,
        exaggeration=exaggeration,
        cfg_weight=cfg_weight,
        temperature=temperature,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        top_k=top_k,
        num_steps=num_steps,
        time_shift_tau=time_shift_tau,
        omnivoice_schedule_t_shift=omnivoice_schedule_t_shift,
        position_temperature=position_temperature,
        seed=seed,
        max_seconds=max_seconds,
        priority=priority,
        word_times=word_times,
        guard=guard,
        guard_retries=guard_retries,
    ) | _chunk_sizes(first_chunk_tokens=first_chunk_tokens, chunk_tokens=chunk_tokens)


def _chunk_sizes(**sizes: int | None) -> dict[str, npt.NDArray[Any]]:
    tensors = {name: _integer(name, size, np.int32) for name, size in sizes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def pieces_of(request: Bound) -> Iterable[str]:
    """The pieces of a request's text. Raises InvalidRequest for another text, or another parameter that is wrong."""
    if not isinstance(request.text, Iterable) or isinstance(request.text, bytes):
        raise InvalidRequest(f"text must be a string or an iterable of strings, not {quote(request.text)}")
    request.of("", 0)()
    return map(_piece, request.text)


def pieces_of_async(request: Bound) -> AsyncIterable[str]:
    """`pieces_of` for asyncio. An iterable that is not asynchronous is read by another thread."""
    if not isinstance(request.text, AsyncIterable):
        return _in_thread(pieces_of(request))
    request.of("", 0)()
    return _pieces(request.text)


async def _pieces(pieces: AsyncIterable[str]) -> AsyncGenerator[str, None]:
    async for piece in pieces:
        yield _piece(piece)


async def _in_thread(pieces: Iterable[str]) -> AsyncGenerator[str, None]:
    iterator = iter(pieces)
    while (piece := await asyncio.to_thread(next, iterator, None)) is not None:
        yield piece


def _piece(piece: object) -> str:
    if not isinstance(piece, str):
        raise InvalidRequest(f"a piece of the text must be a string, not {quote(piece)}")
    return piece


def outputs_of(request: Tensors, outputs: Sequence[str]) -> tuple[str, ...]:
    """Those that a request is answered with."""
    return (*outputs, *([WORDS] if "word_times" in request else []))


def text_request(request: Tensors) -> Tensors:
    """A request whose answer shows the text that would be spoken."""
    return {**request, "format": np.array([[b"text"]], dtype=np.object_)}


def text_of(answer: Tensors) -> dict[str, Any]:
    """What `text_request` is answered with; raises ServerError when the answer is not of this contract."""
    shown: dict[str, Any] = _audio(answer, OUTPUTS)["stats"]
    return shown


def audio_of(answer: Tensors) -> Audio:
    """The `Audio` in a model's answer; raises ServerError when the answer is not of this contract."""
    return Audio(**_audio(answer, OUTPUTS))


def chunks_of(answers: Generator[Tensors, None, None]) -> Generator[Chunk, None, None]:
    """The chunks in a stream's answers; raises ServerError when the stream ends before its last chunk."""
    ended = False
    with contextlib.closing(answers):
        for answer in answers:
            chunk = _chunk(answer)
            ended = chunk.is_last
            yield chunk
    _check_end(ended)


async def chunks_of_async(answers: AsyncGenerator[Tensors, None]) -> AsyncGenerator[Chunk, None]:
    """`chunks_of` for asyncio."""
    ended = False
    async with contextlib.aclosing(answers):
        async for answer in answers:
            chunk = _chunk(answer)
            ended = chunk.is_last
            yield chunk
    _check_end(ended)


def _check_end(ended: bool) -> None:
    if not ended:
        raise ServerError("the stream ended before its last chunk")


def _chunk(answer: Tensors) -> Chunk:
    parts = _audio(answer, STREAM_OUTPUTS)
    return Chunk(**parts, index=int(answer["chunk_index"].item()), is_last=bool(answer["is_last"].item()))


def _audio(answer: Tensors, outputs: Sequence[str]) -> dict[str, Any]:
    missing = [name for name in outputs if name not in answer]
    if missing:
        raise ServerError(f"the answer lacks the output {', '.join(missing)}")
    try:
        stats = json.loads(answer["stats"].item())
    except ValueError as error:
        raise ServerError(f"the answer's stats are not JSON: {error}") from error
    try:
        words = [Word(**{**word, "span": tuple(word["span"])}) for word in _listed(answer)]
    except (ValueError, TypeError, KeyError) as error:
        raise ServerError(f"the answer's words are not of this contract: {error}") from error
    return {
        "samples": answer["audio"].reshape(-1).copy(),  # what tritonclient hands out is read-only
        "sample_rate": int(answer["sample_rate"].item()),
        "speech_tokens": answer["speech_tokens"].reshape(-1).copy(),
        "stats": stats,
        "words": words,
    }


def _listed(answer: Tensors) -> list[dict[str, Any]]:
    """The entries of the words; none where the request asked for none."""
    listed: list[dict[str, Any]] = json.loads(answer[WORDS].item()) if WORDS in answer else []
    return listed


@dataclass(frozen=True)
class Bound:
    """A request that is built when it is called."""

    build: Callable[..., Tensors]
    args: tuple[Any, ...]
    options: Mapping[str, Any]

    def __call__(self) -> Tensors:
        """The tensors. Raises what `build` does."""
        return self.build(*self.args, **self.options)

    @property
    def text(self) -> Any:
        """The text as it was given: one string, or pieces."""
        return self.args[0] if self.args else self.options.get("text", "")

    @property
    def language(self) -> str:
        """The language whose sentences the text has."""
        return self.options.get("language") or "en"

    def of(self, sentence: str, seed: int) -> Bound:
        """The same request for a sentence of the text. seed: used where the request has none."""
        options = {name: value for name, value in self.options.items() if name != "text"}
        given = options.get("seed")
        return Bound(self.build, (sentence, *self.args[1:]), options | {"seed": seed if given is None else given})


def takes_arguments_of(
    build: Callable[P, Tensors],
) -> Callable[[Callable[[SelfT, Bound], R]], Callable[Concatenate[SelfT, P], R]]:
    """Gives a method the parameters of `build`, so that they are listed once for all clients.

    The method gets `build` with the arguments bound, and calls it where its errors should be raised.
    """

    def decorate(method: Callable[[SelfT, Bound], R]) -> Callable[Concatenate[SelfT, P], R]:
        @functools.wraps(method)
        def call(self: SelfT, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return method(self, Bound(build, args, kwargs))

        own = inspect.signature(method)
        receiver = next(iter(own.parameters.values()))
        parameters = [receiver, *inspect.signature(build).parameters.values()]
        vars(call)["__signature__"] = own.replace(parameters=parameters)
        return call

    return decorate


def _contents(clip: str | os.PathLike[str] | bytes | None) -> bytes | None:
    """A clip's bytes, read from its file where it is a path."""
    return clip if clip is None or isinstance(clip, bytes) else Path(clip).read_bytes()


def _bytes(name: str, value: str | bytes | None) -> npt.NDArray[Any] | None:
    if value is None:
        return None
    try:
        raw = value if isinstance(value, bytes) else value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} is not valid Unicode: {error}") from error
    return np.array([[raw]], dtype=np.object_)


def _float(name: str, value: float | None) -> npt.NDArray[Any] | None:
    if value is None:
        return None
    try:
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which the server refuses by name
            return np.full((1, 1), float(value), dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name} must be a number, not {quote(value)}") from error


def _integer(name: str, value: int | None, dtype: type[np.int32] | type[np.int64]) -> npt.NDArray[Any] | None:
    if value is None:
        return None
    limits = np.iinfo(dtype)
    try:
        number = operator.index(value)
    except TypeError:
        number = limits.max + 1
    if not limits.min <= number <= limits.max:  # numpy 1 would cut the bits off
        raise InvalidRequest(f"{name} must be an integer of {limits.bits} bits, not {quote(value)}")
    return np.full((1, 1), number, dtype=dtype)
