"""Numbers in words, as num2words has them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

LARGEST = 10**15
"""Larger numbers are read digit by digit."""

# fmt: off
LANGUAGES = frozenset({
    "ar", "da", "de", "en", "es", "fi", "fr", "he", "it", "ja", "ko", "nl", "no", "pl", "pt", "ru", "sv", "tr",
})
# fmt: on
"""The languages of the models that num2words has. In the others digits are left to the model."""

_AND = re.compile(r",| and\b")
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@lru_cache(4096)
def cardinal(number: int, language: str) -> str:
    """A whole number in words; the language is one of LANGUAGES."""
    if not 0 <= number < LARGEST:
        return digits(str(number), language)
    return _said(_num2words()(number, lang=language), language)


@lru_cache(4096)
def ordinal(number: int, language: str) -> str:
    """A place in a row in words; the language is one of LANGUAGES."""
    if not 0 < number < LARGEST:
        return cardinal(number, language)
    return _said(_num2words()(number, lang=language, to="ordinal"), language)


def decimal(number: str, language: str) -> str:
    """A number whose decimals, if any, stand after a full stop."""
    whole, _, fraction = number.partition(".")
    if not fraction or not whole.isdigit():
        return cardinal(int(whole or "0"), language)
    point = _point(language)
    return f"{cardinal(int(whole), language)} {point} {digits(fraction, language)}"


def digits(number: str, language: str) -> str:
    """The digits one by one; other characters are left out."""
    return " ".join(cardinal(int(char), language) for char in number if char.isdecimal())


@lru_cache(1024)
def year(number: int, language: str) -> str:
    """A year, which some languages say in hundreds."""
    if language == "en":
        century, rest = divmod(number, 100)
        if not rest and century % 10:
            return f"{cardinal(century, language)} hundred"
        if century % 10 == 0 and rest < 10:
            return cardinal(number, language)
        return f"{cardinal(century, language)} {'oh ' if rest < 10 else ''}{cardinal(rest, language)}"
    if language == "de" and 1100 <= number < 2000:
        return _said(_num2words()(number, lang=language, to="year"), language)
    return cardinal(number, language)


@cache
def minus(language: str) -> str:
    """The word before a negative number; the language is one of LANGUAGES."""
    if language == "pl":  # num2words 0.5 fails there
        return "minus"
    return _said(_num2words()(-3, lang=language), language).removesuffix(cardinal(3, language)).strip()


@cache
def _point(language: str) -> str:
    """The word between a number and its decimals: that of 3.5, between three and five."""
    if language in _POINTS:
        return _POINTS[language]
    said = _said(_num2words()(3.5, lang=language), language)
    return said.removeprefix(cardinal(3, language)).removesuffix(cardinal(5, language)).strip()


_POINTS = {
    "es": "coma",
    "ar": "\u0641\u0627\u0635\u0644\u0629",
    "ru": "\u0437\u0430\u043f\u044f\u0442\u0430\u044f",
    "tr": "virg\u00fcl",
}
"""Where num2words says decimals in another way than digit by digit."""


def _said(words: str, language: str) -> str:
    return _AND.sub("", words) if language == "en" else words


@cache
def _num2words() -> Callable[..., Any]:
    from num2words import num2words

    convert: Callable[..., Any] = num2words
    return convert
