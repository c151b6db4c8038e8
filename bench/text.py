"""The stages of a text on the host: milliseconds by length, which must grow no faster than the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report import Report, Row, seconds
from chatterbox_engine.text.pipeline import Reader
from chatterbox_engine.types import NORMALIZATIONS, SynthesisRequest

PARAGRAPHS = (
    "**This** is a paragraph with [a link](https://example.org/x) in it; mail a@b.org, at 10:30, and pay $5.\n\n"
    "And here is a longer line of ordinary prose, without any markup in it at all. It only goes on for a while.\n\n"
)
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
CASES = [("none", "en"), ("plain", "en"), ("spoken", "en"), ("spoken", "de")]


def main() -> None:
    report = Report("text")
    reader = Reader(("en", "de"), (), "the model", 300)
    assert {normalization for normalization, _ in CASES} == set(NORMALIZATIONS)
    for normalization, language in CASES:
        for length in LENGTHS:
            text = (PARAGRAPHS * (length // len(PARAGRAPHS) + 1))[:length]
            request = SynthesisRequest(text, seed=1, language=language, text_normalization=normalization)
            taken = seconds(lambda request=request: reader.read(request), repeat=3 if length < 100_000 else 1)
            case = f"{normalization}, {language}, {length:,} characters"
            report.add(
                case, ours=1000 * taken, upstream=None, unit="ms", more=False, us_per_character=1e6 * taken / length
            )
    report.write(draw)


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """Microseconds per character by length."""
    for number, (normalization, language) in enumerate(CASES):
        chosen = rows[number * len(LENGTHS) : (number + 1) * len(LENGTHS)]
        axes.plot(
            LENGTHS, [row["us_per_character"] for row in chosen], marker="o", label=f"{normalization}, {language}"
        )
    axes.set_xscale("log")
    axes.set_xlabel("characters")
    axes.set_ylabel("us per character")
    axes.legend()
