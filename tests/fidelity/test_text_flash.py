"""English in words equals upstream's normaliser: the package chatterbox-flash 0.1.0, `text_norm`, called as it is."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

import pytest

from chatterbox_engine.text.flash import flash
from chatterbox_engine.text.passages import Text
from chatterbox_engine.text.spoken import spoken

COMMON = """
{n} boats came in before {t}.
Room {n} is free at {t}, or at {t} pm, is it not?
In {y} there were {n} of them, by {y} only {n}!
From {y}-{y} it grew, and since {y} it has not.
About {p} percent, or {p}%
Ask for number #{n}, please.
Call {tel}, or {tel} after {t} pm, please.
It is {n} > {n} and {n} < {n} as well.
A well-known {n}-year-old, half-asleep, said so.
Mr. and Mrs. Hill vs. Capt. Reed, etc.
The harbour - or what is left of it - has {n} piers \u2014 so they say.
They ran {n}.{f} miles in {n} hours.
On Mon. and Fri. the dept. is shut; our CEO met the rev. there, i.e. twice.
{n},{n3} people came, {n} left
It took {n}kg of flour and {p}ml of milk
{n} min. and {n} sec. later she was gone
The score was {n}-{n} at {t}.
Nobody came.
""".strip().split("\n")
"""Where English in words is upstream's to the letter."""

ODD = """
It costs {m} or {m}, she said.
Room {n} is free from {t} until {t} or {n} am in {n} ambulances.
She came at {t} pm.
({m}) is too much ({n})
US{m}; {m} million for {m}B, {m} billion.
The {o} of May and the {o}, Sept. {n}.
Version {n}.{n}.{n}, {n}x{n} and {n}/{n}
Dr. Lee lives on {n} Main St.
{n}.{n}% of {n}% were {n}in {n}ft {n}yds {n}s and {n}.{f}km.
half {n}\u00bd of m\u00b2, \ufb01sh {n}\u00b0
""".strip().split("\n")
"""Where upstream misreads some, and English in words has rules of its own."""

MISREAD = re.compile(r"\b1[1-9]00\b|\b(?:min|sec)\.")
"""What upstream reads as "nineteen oh zero", and as one minute whatever the number."""

NUMBERS = (0, 1, 2, 5, 7, 10, 11, 12, 15, 20, 21, 42, 99, 100, 101, 110, 200, 1000, 1234, 1900, 2500, 12345, 1_000_000)


def fill(template: str, draw: random.Random) -> str:
    """A template with values."""
    values: dict[str, Callable[[], str]] = {
        "n": lambda: str(draw.choice(NUMBERS)),
        "n3": lambda: f"{draw.randrange(1000):03d}",
        "f": lambda: f"{draw.randrange(100):02d}",
        "p": lambda: str(draw.randrange(101)),
        "t": lambda: f"{draw.randint(1, 23)}:{draw.randrange(60):02d}",
        "y": lambda: str(draw.randint(1100, 2099)),
        "m": lambda: draw.choice("$\u00a3\u20ac\u00a5") + draw.choice(["1", "12", "1,250", "99.95", "3.5", "40"]),
        "o": lambda: draw.choice(["1st", "2nd", "3rd", "12th", "21st", "100th"]),
        "tel": lambda: draw.choice(["555-1234", "555-010-9999", "(555) 123-4567", "5551234567", "020 7946 0958"]),
    }
    return re.sub(r"\{(\w+)\}", lambda field: values[field[1]](), template)


def sentences(templates: list[str], count: int) -> list[str]:
    """As many different sentences."""
    draw = random.Random(27)
    made: dict[str, None] = {}
    for template in itertools.cycle(templates):
        made[fill(template, draw)] = None
        if len(made) == count:
            break
    return list(made)


@pytest.fixture(scope="module")
def theirs() -> Callable[[str], str]:
    from chatterbox_flash.text_norm import en_us_cleaner

    return en_us_cleaner


@pytest.mark.parametrize(("templates", "count"), [(COMMON, 600), (ODD, 300)], ids=["common", "odd"])
def test_the_words_that_flash_was_trained_on_equal_upstreams(
    templates: list[str], count: int, theirs: Callable[[str], str]
) -> None:
    for sentence in sentences(templates, count):
        assert flash(Text.of(sentence)).string == theirs(sentence), sentence


def test_english_in_words_is_upstreams_where_upstream_reads_it(theirs: Callable[[str], str]) -> None:
    sure = [sentence for sentence in sentences(COMMON, 600) if not MISREAD.search(sentence)]
    assert len(sure) > 500
    for sentence in sure:
        assert spoken(Text.of(sentence), "en").string == theirs(sentence), sentence
