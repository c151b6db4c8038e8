"""LLVM's vectors, and instructions that numba does not expose.

To numba bfloat16 is uint16 and float16 is int16. The innermost loops are written in vectors, because their speed
depends on what stays in registers. Arguments `builder` are llvmlite's; the functions add to its code.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
"""Floats per vector."""
CACHE_LINE = 64
"""Bytes. A vector of that size across two of them takes as long as two to load."""
FAST = {"reassoc", "contract", "nsz"}  # LLVM may reorder sums; NaN and infinity keep their meaning
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOAT, HALF = ir.FloatType(), ir.HalfType()
VECTOR, HALVES = ir.VectorType(FLOAT, LANES), ir.VectorType(HALF, 2 * LANES)


def _number_to_pointer(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


def _pointer_to(numba_type: Any) -> Any:
    @intrinsic
    def pointer(_context, address):  # type: ignore[no-untyped-def]
        return types.CPointer(numba_type)(types.int64), _number_to_pointer

    return pointer


floats_at, bfloat16s_at, float16s_at = (_pointer_to(kind) for kind in (types.float32, types.uint16, types.int16))
booleans_at, integers_at = _pointer_to(types.uint8), _pointer_to(types.int64)


@intrinsic
def at(_context, address, kind):  # type: ignore[no-untyped-def]
    """The address as a pointer of the same type as `kind`."""
    return kind(types.int64, kind), _number_to_pointer


@intrinsic
def take(_context, counter):  # type: ignore[no-untyped-def]
    """Increments the number at an address atomically and returns what it was: every thread gets another one."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def float_of(_context, bits):  # type: ignore[no-untyped-def]
    return types.float32(types.int32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], FLOAT)


@intrinsic
def bits_of(_context, number):  # type: ignore[no-untyped-def]
    return types.int32(types.float32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], I32)


@intrinsic
def float_of_half(_context, bits):  # type: ignore[no-untyped-def]
    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fpext(builder.bitcast(arguments[0], HALF), FLOAT)

    return types.float32(types.int16), generate


@intrinsic
def half_of(_context, number):  # type: ignore[no-untyped-def]
    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(builder.fptrunc(arguments[0], HALF), I16)

    return types.int16(types.float32), generate


def function(builder: Any, name: str, result: Any, *parameters: Any) -> Any:
    """LLVM's function of this name, declared once in a module."""
    declared = builder.module.globals.get(name)
    return declared or ir.Function(builder.module, ir.FunctionType(result, parameters), name)


def offset(builder: Any, address: Any, numbers: Any, size: Any) -> Any:
    """The address that many numbers of `size` bytes further on."""
    numbers, size = (ir.Constant(I64, it) if isinstance(it, int) else it for it in (numbers, size))
    return builder.add(address, builder.mul(numbers, size))


def load(builder: Any, address: Any, kind: Any, size: int) -> Any:
    """What is at an address that is a multiple of `size` bytes."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = size
    return value


def load_wide(builder: Any, address: Any, kind: Any, lanes: int = LANES) -> Any:
    """A vector of numbers in float32. kind: numba's type of them."""
    if kind == types.float32:
        return load(builder, address, ir.VectorType(FLOAT, lanes), 4)
    if kind == types.int16:
        return builder.fpext(load(builder, address, ir.VectorType(HALF, lanes), 2), ir.VectorType(FLOAT, lanes))
    wide = builder.zext(load(builder, address, ir.VectorType(I16, lanes), 2), ir.VectorType(I32, lanes))
    return builder.bitcast(builder.shl(wide, ir.Constant(wide.type, [16] * lanes)), ir.VectorType(FLOAT, lanes))


def store_narrow(builder: Any, vector: Any, address: Any, kind: Any) -> None:
    """Stores a vector of float32 as numbers of numba's type `kind`, rounded to the nearest."""
    lanes = vector.type.count
    if kind == types.int16:
        vector = builder.fptrunc(vector, ir.VectorType(HALF, lanes))
    elif kind == types.uint16:
        wide = ir.VectorType(I32, lanes)
        bits, upper, one = (
            builder.bitcast(vector, wide),
            ir.Constant(wide, [16] * lanes),
            ir.Constant(wide, [1] * lanes),
        )
        odd = builder.and_(builder.lshr(bits, upper), one)
        rounded = builder.add(builder.add(bits, ir.Constant(wide, [0x7FFF] * lanes)), odd)
        vector = builder.trunc(builder.lshr(rounded, upper), ir.VectorType(I16, lanes))
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer())).align = kind.bitwidth // 8


def prefetch(builder: Any, address: Any) -> None:
    """Brings a cache line closer, for reading; its address may be any."""
    byte = ir.IntType(8).as_pointer()
    prefetch = function(builder, "llvm.prefetch.p0", ir.VoidType(), byte, I32, I32, I32)
    builder.call(prefetch, [builder.inttoptr(address, byte), *(ir.Constant(I32, flag) for flag in (0, 2, 1))])


def until(builder: Any, address: Any, last: Any) -> Any:
    """The smaller of two addresses."""
    return builder.select(builder.icmp_unsigned("<", address, last), address, last)


def spread(builder: Any, number: Any, lanes: int) -> Any:
    """A vector of a number."""
    vector = ir.VectorType(number.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def fmuladd(builder: Any, vector: Any = VECTOR) -> Any:
    """LLVM's function of three vectors: the product of the first two, added to the third."""
    name = f"llvm.fmuladd.v{vector.count}f{16 if vector.element == HALF else 32}"
    return function(builder, name, vector, vector, vector, vector)


def added_lanes(builder: Any, vectors: list[Any]) -> Any:
    """A vector of the sums of the lanes of each vector; their number is a power of two, at most that of the lanes.

    Halves of the lanes are added to each other, then halves of these, ...; those of two vectors at a time, while there
    are two. One shuffle and one blend, which is cheaper, bring them together:

        [a0, b1] + [a1, b0] -> [a0 + a1, b1 + b0], where a0 is the first half of a, and so on for halves of each half
    """
    width = vectors[0].type.count  # of a sum's lanes that are still to be added
    of = [[number] * width for number in range(len(vectors))]  # whose each lane is
    while len(vectors) > 1:
        half, lanes = width // 2, range(vectors[0].type.count)
        first = [lane % width < half for lane in lanes]
        second = len(first)  # where the lanes of the second vector begin
        blend = [lane if own else second + lane for lane, own in zip(lanes, first, strict=True)]
        swap = [lane + half if own else second + lane - half for lane, own in zip(lanes, first, strict=True)]
        masks = [ir.Constant(ir.VectorType(I32, len(picked)), picked) for picked in (blend, swap)]
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
        vectors = [builder.fadd(*(builder.shuffle_vector(*pair, mask) for mask in masks)) for pair in pairs]
        of = [
            [a[lane] if own else b[lane] for lane, own in zip(lanes, first, strict=True)]
            for a, b in zip(of[::2], of[1::2], strict=True)
        ]
        width = half
    vector, owners = vectors[0], of[0]
    while width > 1:
        half = width // 2
        kept = [lane for lane in range(vector.type.count) if lane % width < half]
        masks = [ir.Constant(ir.VectorType(I32, len(kept)), [lane + shift for lane in kept]) for shift in (0, half)]
        vector = builder.fadd(*(builder.shuffle_vector(vector, vector, mask) for mask in masks))
        owners, width = [owners[lane] for lane in kept], half
    order = [owners.index(number) for number in range(len(owners))]
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, len(order)), order))


def interleaved(builder: Any, vectors: list[Any]) -> Any:
    """The first numbers of all vectors, then the second ones, ...: a vector of them."""
    while len(vectors) > 1:
        half, size = len(vectors) // 2, vectors[0].type.count
        lanes = [lane for i in range(size) for lane in (i, size + i)]
        mask = ir.Constant(ir.VectorType(I32, 2 * size), lanes)
        vectors = [builder.shuffle_vector(*pair, mask) for pair in zip(vectors[:half], vectors[half:], strict=True)]
    return vectors[0]
