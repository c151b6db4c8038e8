"""The contract of streams: what they take besides, and what a chunk looks like."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.serving import contract
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.types import SynthesisChunk

CONFIG = Path(__file__).parents[2] / "model_repository" / "chatterbox_stream" / "config.pbtxt"


TERMS = contract.Terms(max_text_chars=100, max_seconds=10.0)


def parse(**inputs: Any) -> contract.StreamCall:
    tensors = {"text": np.array([[b"Hello."]], dtype=object)}
    tensors |= {
        name: np.array([[value]], dtype=object if isinstance(value, bytes) else None) for name, value in inputs.items()
    }
    return contract.parse_stream(tensors, TERMS)


def chunk(*, last: bool) -> SynthesisChunk:
    return SynthesisChunk(
        3, np.full(960, 0.5, dtype=np.float32), np.array([7], dtype=np.int32), {"seed": 1} if last else None
    )


def test_chunk_sizes_have_defaults_and_can_be_set() -> None:
    assert parse().policy == ChunkPolicy()
    assert parse(first_chunk_tokens=3, chunk_tokens=99).policy == ChunkPolicy(3, 99)
    assert parse(seed=5).request.seed == 5


@pytest.mark.parametrize("name", ["first_chunk_tokens", "chunk_tokens"])
@pytest.mark.parametrize("size", [-1, 0, 751])
def test_a_chunk_size_that_cannot_be_is_refused_by_name(name: str, size: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"{name} is {size}; it must be from 1 "):
        parse(**{name: size})


def test_a_value_that_only_rounding_brings_into_its_range_is_shown_whole() -> None:
    for value, shown in ((1.0000001, "1.0000001192"), (2.0, "2"), (float("nan"), "nan")):
        with pytest.raises(InvalidRequest, match=rf"top_p is {shown}\d*; it must be above 0 and at most 1"):
            parse(top_p=np.float32(value))


@pytest.mark.parametrize("audio_format", [b"wav", b"mp3", b"nonsense"])
def test_a_file_format_is_refused_for_chunks(audio_format: bytes) -> None:
    with pytest.raises(InvalidRequest, match="format"):
        parse(format=audio_format)


def test_whole_answers_refuse_chunk_sizes() -> None:
    tensors = {"text": np.array([[b"Hello."]], dtype=object), "chunk_tokens": np.array([[5]])}
    with pytest.raises(InvalidRequest, match="unknown input 'chunk_tokens'"):
        contract.parse(tensors, TERMS)


@pytest.mark.parametrize("last", [False, True])
def test_a_chunk_has_every_output_and_statistics_when_it_is_the_last(last: bool) -> None:
    tensors = contract.chunk_outputs(chunk(last=last), "pcm")
    assert tuple(tensors) == contract.STREAM_OUTPUTS
    assert (tensors["chunk_index"].item(), tensors["is_last"].item()) == (3, last)
    assert json.loads(tensors["stats"].item()) == ({"seed": 1} if last else {})
    assert tensors["audio"].shape == (1, 960)
    raw = contract.chunk_outputs(chunk(last=last), "s16")
    assert raw["audio"].shape == (1, 0)
    assert len(base64.b64decode(raw["audio_base64"].item())) == 2 * 960


def test_the_configuration_names_the_contracts_tensors() -> None:
    text = CONFIG.read_text(encoding="utf-8")
    inputs, outputs = (re.findall(r'name: "(\w+)"', part) for part in text.split("input [")[1].split("output ["))
    assert set(inputs) == {*contract.INPUTS, *contract.CHUNKING}
    assert tuple(outputs) == contract.STREAM_OUTPUTS
