"""Where some heads look in the text."""

from __future__ import annotations

import ctypes
from ctypes import c_int64

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from chatterbox_engine.kernels.cpu.launch import BEGUN, COUNTERS, DONE, Kernel, address, run
from chatterbox_engine.kernels.cpu.numbers import rotate, softmax, wide
from chatterbox_engine.kernels.cpu.vectors import FAST, at, bfloat16s_at, float16s_at, floats_at, integers_at, take

NEAR = 4
"""Places to each side of the one that most attention is on, of which the centre of mass is taken."""


class AlignCall(ctypes.Structure):
    """out = where some heads look in the text at each row's newest position"""

    _fields_ = (
        *COUNTERS,
        ("utterances", c_int64),
        ("rows", c_int64),
        ("slots", c_int64),
        ("layers", c_int64),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("positions", c_int64),  # of the pool
        ("longest", c_int64),  # positions of a row
        ("named", c_int64),  # heads that are read
        ("readings", c_int64),  # numbers of a result
        ("pool", c_int64),  # [layers, 2, positions, heads, head_dim]
        ("picked", c_int64),  # [named, 2] int64, layer and head
        ("queries", c_int64),  # [rows, named, head_dim]
        ("rotation", c_int64),  # [longest, 2, head_dim / 2]
        ("slot", c_int64),  # [utterances] int64
        ("row", c_int64),  # [utterances] int64
        ("start", c_int64),  # [rows] int64
        ("prompt", c_int64),  # [slots] int64
        ("step", c_int64),  # [slots] int64
        ("text", c_int64),  # [2, slots] int64, the text's first position and the one after its last
        ("out", c_int64),  # [utterances, readings] float32
    )


_CALL = np.dtype(AlignCall)


@njit(fastmath=FAST)
def _product(query, key):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(len(query)):
        total += query[i] * wide(key[i])
    return total


@njit(fastmath=FAST, error_model="numpy")
def _read(attention, frame, out):  # type: ignore[no-untyped-def]
    """The numbers of `types.Reading` of a mean attention over the text, [text] float32, in step `frame`."""
    size, place, strict, mass, earlier = len(attention), 0, 0, np.float32(0.0), np.float32(0.0)
    for i in range(size):
        mass += attention[i]
        if attention[i] > attention[place]:
            place = i
        if i <= frame:
            if attention[i] > attention[strict]:
                strict = i
            if i < size - 5:
                earlier = max(earlier, attention[i])
    near, moment = np.float32(0.0), np.float32(0.0)
    for i in range(max(0, place - NEAR), min(size, place + NEAR + 1)):
        near += attention[i]
        moment += attention[i] * np.float32(i)
    out[0], out[1] = place, moment / near if near > 0 else place
    out[2], out[3] = mass, attention[place] if size else 0.0
    out[4], out[5] = strict, earlier
    for i in range(3):
        at_end = size - 3 + i
        out[6 + i] = attention[at_end] if 0 <= at_end <= frame else 0.0


@njit
def _align(work, kind):  # type: ignore[no-untyped-def]
    """A thread's pieces of an `AlignCall`: an utterance each. kind: a pointer of the tensors' type."""
    call = work[0]
    size, named, longest = call.head_dim, call.named, call.longest
    pool = carray(at(call.pool, kind), (call.layers, 2, call.positions, call.heads, size))
    picked = carray(integers_at(call.picked), (named, 2))
    queries = carray(at(call.queries, kind), (call.rows, named, size))
    rotated, rotation = call.rotation != 0, carray(at(call.rotation, kind), (longest, 2, size // 2))
    slots, rows = carray(integers_at(call.slot), call.utterances), carray(integers_at(call.row), call.utterances)
    start, text = carray(integers_at(call.start), call.rows), carray(integers_at(call.text), (2, call.slots))
    prompt, step = carray(integers_at(call.prompt), call.slots), carray(integers_at(call.step), call.slots)
    out = carray(floats_at(call.out), (call.utterances, call.readings))
    scale, query = np.float32(1.0 / np.sqrt(size)), np.empty(size, np.float32)
    scores, attention = np.empty(longest, np.float32), np.empty(longest, np.float32)
    while True:
        piece = take(work.ctypes.data)
        if piece >= call.utterances:
            break
        slot, row = slots[piece], rows[piece]
        first, held, begin, end = start[row], prompt[slot] + step[slot], text[0, slot], text[1, slot]
        if first < 0 or held < 1 or first + held > call.positions or not 0 <= begin <= end <= held <= longest:
            raise IndexError("a row's positions are not in the pool")
        attention[: end - begin] = np.float32(0.0)
        for i in range(named):
            keys = pool[picked[i, 0], 0, first : first + held, picked[i, 1]]
            rotate(queries[row, i], rotation[held - 1], rotated, query)
            for j in range(size):
                query[j] *= scale
            for place in range(held):
                scores[place] = _product(query, keys[place])
            softmax(scores[:held])
            for j in range(end - begin):
                attention[j] += scores[begin + j] / np.float32(named)
        _read(attention[: end - begin], step[slot], out[piece])


@Kernel
def _alignment_float32(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _align(work, floats_at(0))
    take(work.ctypes.data + DONE)


@Kernel
def _alignment_bfloat16(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _align(work, bfloat16s_at(0))
    take(work.ctypes.data + DONE)


@Kernel
def _alignment_float16(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _align(work, float16s_at(0))
    take(work.ctypes.data + DONE)


KERNELS = {torch.float32: _alignment_float32, torch.bfloat16: _alignment_bfloat16, torch.float16: _alignment_float16}
"""By the type of the tensors."""


def alignment(
    pool: Tensor,
    picked: Tensor,
    queries: Tensor,
    rotation: Tensor | None,
    places: tuple[Tensor, Tensor, Tensor],
    prompt: Tensor,
    step: Tensor,
    text: Tensor,
    out: Tensor,
    longest: int,
) -> None:
    """As `alignment_cuda.score` and `reduce`, without the logits; longest: positions of a row at most."""
    slot, row, start = (place.contiguous() for place in places)
    assert queries.dtype == pool.dtype
    layers, _, positions, heads, head_dim = pool.shape
    call = AlignCall(
        utterances=len(slot),
        rows=len(start),
        slots=len(prompt),
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        positions=positions,
        longest=longest,
        named=len(picked),
        readings=out.shape[1],
        pool=address(pool),
        picked=address(picked),
        queries=address(queries),
        rotation=address(rotation),
        slot=address(slot),
        row=address(row),
        start=address(start),
        prompt=address(prompt),
        step=address(step),
        text=address(text),
        out=address(out),
    )
    run(KERNELS[pool.dtype], call)
