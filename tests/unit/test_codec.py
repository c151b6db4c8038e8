"""The messages between engine and front: what comes back is what was sent, and other bytes are refused."""

from __future__ import annotations

import contextlib
import math
import pickle
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chatterbox_engine import errors
from chatterbox_engine.serving.codec import (
    Cancel,
    Failed,
    Load,
    Message,
    Open,
    Part,
    Ready,
    WrongMessage,
    decode,
    encode,
)

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RequestError)]
NUMBERS = st.integers(0, 2**63 - 1)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
DTYPES = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes()
    | hnp.unsigned_integer_dtypes()
    | hnp.floating_dtypes(sizes=(16, 32, 64))
)


@st.composite
def of_bytes(draw: st.DrawFn) -> npt.NDArray[Any]:
    """A tensor of byte strings."""
    shape = draw(SHAPES)
    size = math.prod(shape)
    array = np.empty(size, dtype=np.object_)
    array[:] = draw(st.lists(st.binary(max_size=20), min_size=size, max_size=size))
    return array.reshape(shape)


TENSORS = st.dictionaries(st.text(max_size=10), hnp.arrays(DTYPES, SHAPES) | of_bytes(), max_size=3)
MESSAGES = st.one_of(
    st.builds(Ready, NUMBERS),
    st.builds(Load, NUMBERS, NUMBERS),
    st.builds(Cancel, NUMBERS),
    st.builds(Open, NUMBERS, TENSORS),
    st.builds(Part, NUMBERS, TENSORS, st.booleans()),
    st.builds(lambda number, kind, text: Failed(number, kind(text)), NUMBERS, st.sampled_from(ERRORS), st.text()),
)


def same(sent: Message, received: Message) -> None:
    assert type(sent) is type(received)
    if isinstance(sent, Failed):
        assert isinstance(received, Failed)
        assert (sent.number, type(sent.error), str(sent.error)) == (
            received.number,
            type(received.error),
            str(received.error),
        )
    elif isinstance(sent, Open | Part):
        assert isinstance(received, Open | Part)
        assert (sent.number, getattr(sent, "last", None)) == (received.number, getattr(received, "last", None))
        assert list(sent.tensors) == list(received.tensors)
        for name, array in sent.tensors.items():
            np.testing.assert_array_equal(received.tensors[name], array)
            assert received.tensors[name].dtype == array.dtype.newbyteorder("=")
            assert received.tensors[name].flags.writeable
    else:
        assert sent == received


@given(MESSAGES)
def test_a_message_comes_back_as_it_was_sent(message: Message) -> None:
    same(message, decode(encode(message)))


@given(MESSAGES, st.data())
def test_a_part_of_a_message_is_none(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    with pytest.raises(WrongMessage):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with contextlib.suppress(WrongMessage):
        decode(data)


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
CONTENT = st.recursive(
    LEAVES | st.binary(max_size=8) | st.sampled_from(["Open", "Part", "Failed", "float32", "bytes"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from(["Open", "Cancel", "Ready", "Part", "Failed", "Other", 1]), st.lists(CONTENT, max_size=4))
def test_messages_with_other_fields_are_refused_or_well_formed(kind: Any, fields: list[Any]) -> None:
    try:
        message = decode(msgpack.packb([kind, *fields]))
    except WrongMessage:
        return
    same(message, decode(encode(message)))


SHAPE_ERRORS: list[Any] = [
    ["float32", [2], b"1234"],
    ["float32", [1], b"123"],
    ["float32", [-1], b"1234"],
    ["float32", [2**64 - 1, 0], b""],
    ["float32", [1] * 100, b"1234"],
    ["float32", [True], b"1234"],
    ["float32", [1.0], b"1234"],
    ["float32", [1], "1234"],
    ["object", [1], b"12345678"],
    ["V8", [1], b"12345678"],
    ["bytes", [2], [b"one"]],
    ["bytes", [1], ["text"]],
    ["bytes", [1], b"x"],
    ["bytes", [2**63, 0], []],
    [],
    None,
]


@pytest.mark.parametrize("packed", SHAPE_ERRORS)
def test_a_tensor_that_is_none_is_refused(packed: Any) -> None:
    with pytest.raises(WrongMessage):
        decode(msgpack.packb(["Open", 1, {"text": packed}]))


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("code was run",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pickle.dumps(Bomb()),
        pickle.dumps(Ready()),
        b"\x91" * 100_000,  # lists in lists
        b"\xdd\xff\xff\xff\xff",  # a list of four billion
        msgpack.packb(["Open", 1, {b"text": ["bool", [1], b"1"]}]),
        msgpack.packb(["Failed", 1, "SystemExit", "text"]),
        msgpack.packb(["Failed", 1, "ChatterboxError", "text"]),
        msgpack.packb(["Ready", msgpack.ExtType(1, b"x")]),
        msgpack.packb(["Ready"]) + b"\x00",
    ],
)
def test_hostile_bytes_are_refused_and_run_no_code(data: bytes) -> None:
    with pytest.raises(WrongMessage):
        decode(data)


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["text"]), np.array([5], dtype=object)])
def test_what_no_tensor_of_triton_holds_is_not_sent(array: npt.NDArray[Any]) -> None:
    with pytest.raises(TypeError):
        encode(Open(1, {"text": array}))
