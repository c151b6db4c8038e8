"""Our CUDA kernels but the draw, each beside what torch has for it: what to keep, and up to where.

Both are replayed from a CUDA graph, and a step's weights and pool are new to the GPU's cache in every call, as in the
engine. Attention is compared with torch's fastest kernel, which is given rows of one length and no mask: it is not that
fast in the engine. Without a GPU there is nothing to measure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.report import Report, Row, say
from chatterbox_engine.kernels.linear import project
from chatterbox_engine.kernels.shapes import Activation
from chatterbox_engine.t3.attention import decode_attention
from chatterbox_engine.t3.kv_cache import SPLIT_PAIRS

EPS = 1e-5
ROWS = (1, 2, 4, 8, 15, 16)
Product = tuple[int, int, Activation, frozenset[str]]
PRODUCTS: dict[str, Product] = {
    "Llama's query, key, value": (3072, 1024, "none", frozenset({"gain"})),
    "Llama's output": (1024, 1024, "none", frozenset({"to"})),
    "Llama's gate and up": (4096, 1024, "swiglu", frozenset({"gain"})),
    "Llama's down": (1024, 4096, "none", frozenset({"to"})),
    "Llama's head": (8194, 1024, "none", frozenset({"gain"})),
    "Turbo's query, key, value": (3072, 1024, "none", frozenset({"bias", "gain", "shift"})),
    "Turbo's up": (4096, 1024, "gelu", frozenset({"bias", "gain", "shift"})),
    "Turbo's down": (1024, 4096, "none", frozenset({"bias", "to"})),
    "Nano's up": (3072, 768, "gelu", frozenset({"bias", "gain", "shift"})),
    "Nano's down": (768, 3072, "none", frozenset({"bias", "to"})),
}
"""Outputs, inputs, what follows, and which of the optional arguments of `project` there are."""
COLD = 256 << 20
"""Bytes that are read in turns, more than any GPU's cache holds."""
HELD = (200, 1000)
DECODED = (2, 16, 128)
FLOW = ((2, 350), (2, 750), (8, 750), (32, 750), (32, 1500))  # rows, both halves of the guidance, and frames
TILES = ((128, 64, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3))


class Case(NamedTuple):
    """A kernel of ours and what it replaces."""

    kernel: str
    name: str
    ours: Callable[[], object]
    torchs: Callable[[], object]


def main() -> None:
    if not torch.cuda.is_available():
        say("kernels: no GPU, nothing to measure")
        return
    from triton.testing import do_bench_cudagraph

    report = Report("kernels")
    with torch.inference_mode():
        for case in cases():
            torch.cuda.synchronize()  # what it reads was made on another stream than those that are captured
            ours, torchs = (1000 * do_bench_cudagraph(call, return_mode="median") for call in (case.ours, case.torchs))
            report.add(f"{case.kernel}: {case.name}", ours=ours, upstream=torchs, unit="us", more=False)
    report.write(draw)


def cases() -> Iterator[Case]:
    yield from products()
    yield from decode_attentions()
    yield from flow_attentions()
    yield from flow_norms()
    yield from snakes()


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def in_turns(tensor: Tensor) -> Callable[[], Tensor]:
    """Copies of a tensor, another one in each call, so many that none is in the cache."""
    copies = itertools.cycle([tensor.clone() for _ in range(max(1, COLD // tensor.nbytes))])
    return lambda: next(copies)


def products() -> Iterator[Case]:
    for name, (outputs, inputs, then, optional) in PRODUCTS.items():
        weights = in_turns(random(outputs * (2 if then == "swiglu" else 1), inputs))
        for rows in ROWS:
            x = random(rows, inputs)
            given: dict[str, Any] = {"bias": random(outputs), "gain": random(inputs), "shift": random(inputs)}
            given = {key: value for key, value in (given | {"to": random(rows, outputs)}).items() if key in optional}

            def ours(x: Tensor = x, weights: Any = weights, then: Activation = then, given: Any = given) -> object:
                return project(x, weights(), eps=EPS, then=then, **given)

            def torchs(x: Tensor = x, weights: Any = weights, then: Activation = then, given: Any = given) -> object:
                return plain_product(x, weights(), then, **given)

            yield Case("product", f"{name}, {rows} rows", ours, torchs)


def plain_product(
    x: Tensor,
    weight: Tensor,
    then: Activation,
    *,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    to: Tensor | None = None,
) -> Tensor:
    """`project` in torch's own operators."""
    if shift is not None and gain is not None:
        x = F.layer_norm(x, gain.shape, gain, shift, EPS)
    elif gain is not None:
        x = F.rms_norm(x, gain.shape, gain, EPS)
    y = F.linear(x, weight, bias)
    if then == "swiglu":
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate) * up
    elif then == "gelu":
        y = F.gelu(y, approximate="tanh")
    return y if to is None else to + y


def decode_attentions() -> Iterator[Case]:
    arrived = torch.zeros(SPLIT_PAIRS, dtype=torch.int32, device="cuda")
    for rows in DECODED:
        for held in HELD:
            room = held + 64
            pools = in_turns(random(1, 2, rows * room, 16, 64))
            qkv, rotation = random(rows, 3, 16, 64), random(rows, 2, 32)
            start = room * torch.arange(rows, device="cuda")
            position = torch.full((rows,), held, device="cuda")

            def ours(given: Any = (qkv, rotation), pools: Any = pools, rest: Any = (0, start, position)) -> object:
                return decode_attention(*given, pools(), arrived, *rest)

            def torchs(
                query: Tensor = qkv[:, 0, :, None], pools: Any = pools, size: Any = (rows, room, held)
            ) -> object:
                keys, values = pools()[0].unflatten(1, size[:2])[:, :, : size[2]].transpose(2, 3)
                return F.scaled_dot_product_attention(query, keys, values)

            yield Case("decode attention", f"{rows} rows of {held}", ours, torchs)


def flow_attentions() -> Iterator[Case]:
    from chatterbox_engine.s3gen import attention_cuda

    for rows, positions in FLOW:
        qkv = random(rows, positions, 3, 8, 64)
        lengths = torch.full((rows,), positions, device="cuda")
        for tiles in TILES:

            def ours(qkv: Tensor = qkv, lengths: Tensor = lengths, tiles: tuple[int, ...] = tiles) -> object:
                with mock.patch.dict(attention_cuda.TILES, {2: (attention_cuda.Tiles(*tiles),) * 2}):
                    return attention_cuda.attend(qkv, lengths)

            def torchs(qkv: Tensor = qkv) -> object:
                return F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))

            yield Case("flow attention", f"{rows} x {positions} frames, tiles {tiles}", ours, torchs)


def flow_norms() -> Iterator[Case]:
    from chatterbox_engine.s3gen.layers import Norm, mish

    norm = Norm(random(256), random(256), EPS)
    torchs_norm = partial(F.layer_norm, normalized_shape=(256,), weight=norm.weight, bias=norm.bias, eps=EPS)
    for rows, positions in FLOW:
        x, change, offset = random(rows, positions, 256), random(rows, positions, 256), random(256)
        yield Case("norm", f"{rows} x {positions} frames", partial(norm, x), partial(torchs_norm, x))

        def ours(x: Tensor = x, change: Tensor = change) -> object:
            return norm.of_sum(x, change)

        def torchs(x: Tensor = x, change: Tensor = change) -> object:
            total = x + change
            return total, torchs_norm(total)

        yield Case("sum and norm", f"{rows} x {positions} frames", ours, torchs)

        def ours_mish(x: Tensor = x, after: Tensor = change, offset: Tensor = offset) -> object:
            return norm.mish(x, after, offset=offset)

        def torchs_mish(x: Tensor = x, after: Tensor = change, offset: Tensor = offset) -> object:
            return mish(torchs_norm(x + offset)) + after

        yield Case("norm and Mish", f"{rows} x {positions} frames", ours_mish, torchs_mish)

        def ours_both(x: Tensor = x, after: Tensor = change, offset: Tensor = offset) -> object:
            return norm.mish_norm(x, after, norm, offset=offset)

        def torchs_both(x: Tensor = x, after: Tensor = change, offset: Tensor = offset) -> object:
            result = mish(torchs_norm(x + offset)) + after
            return result, torchs_norm(result)

        yield Case("norm, Mish and norm", f"{rows} x {positions} frames", ours_both, torchs_both)


def snakes() -> Iterator[Case]:
    from chatterbox_engine.s3gen.snake_cuda import snake

    for rows in (1, 16):
        for rate, width in ((8, 256), (40, 128), (120, 64)):
            shape = (rows, 250 * rate, width)
            x, change = (random(*shape, dtype=torch.float32) for _ in range(2))
            alpha, inverse, bias = random(3, width, dtype=torch.float32)
            mask = torch.ones(*shape[:2], 1, dtype=torch.bool, device="cuda")

            def ours(x: Tensor = x, change: Tensor = change, rest: Any = (alpha, inverse, mask, bias)) -> object:
                return snake(x, *rest[:3], bias=rest[3], change=change)

            def torchs(x: Tensor = x, change: Tensor = change, rest: Any = (alpha, inverse, mask, bias)) -> object:
                total = x + (change + rest[3]) * rest[2]
                return total, total + torch.sin(total * rest[0]).square() * rest[1]

            yield Case("Snake", f"{rows} x {shape[1]} positions of {width}", ours, torchs)


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """How many times as fast as torch's."""
    places = range(len(rows))
    axes.figure.set_size_inches(8, 2 + 0.14 * len(rows))
    axes.barh(places, [row["ratio"] for row in rows])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(list(places), [row["case"] for row in rows], fontsize="xx-small")
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as torch")
