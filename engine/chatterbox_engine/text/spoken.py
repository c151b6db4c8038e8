"""The stage `spoken`: what is written in digits and signs in words, as num2words and CLDR (babel) have them."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from functools import cache

from chatterbox_engine.text import numbers
from chatterbox_engine.text.passages import Text
from chatterbox_engine.text.spoken_english import spoken_english

_UNITS = {
    "%": "concentr-percent",
    "km/h": "speed-kilometer-per-hour",
    "km": "length-kilometer",
    "cm": "length-centimeter",
    "mm": "length-millimeter",
    "m": "length-meter",
    "kg": "mass-kilogram",
    "mg": "mass-milligram",
    "g": "mass-gram",
    "ml": "volume-milliliter",
    "l": "volume-liter",
    "\u00b0C": "temperature-celsius",
    "\u00b0F": "temperature-fahrenheit",
    "GB": "digital-gigabyte",
    "MB": "digital-megabyte",
    "kHz": "frequency-kilohertz",
    "MHz": "frequency-megahertz",
    "GHz": "frequency-gigahertz",
    "\u043a\u043c/\u0447": "speed-kilometer-per-hour",
    "\u043a\u043c": "length-kilometer",
    "\u0441\u043c": "length-centimeter",
    "\u043c\u043c": "length-millimeter",
    "\u043c": "length-meter",
    "\u043a\u0433": "mass-kilogram",
    "\u0433": "mass-gram",
    "\u043b": "volume-liter",
}
_PERCENT = {
    "ar": "{} \u0628\u0627\u0644\u0645\u0626\u0629",
    "ko": "{} \ud37c\uc13c\ud2b8",
    "tr": "y\u00fczde {}",
    "zh": "\u767e\u5206\u4e4b{}",
}
"""Where CLDR's long form is the sign."""

# fmt: off
_CURRENCIES = {
    "\u20ac": "EUR", "$": "USD", "R$": "BRL", "\u00a3": "GBP", "\u00a5": "JPY", "\u20b9": "INR", "\u20a9": "KRW",
    "\u20ba": "TRY", "z\u0142": "PLN", "kr": "", "\u20bd": "RUB", "\u20aa": "ILS",
}
# fmt: on
_CROWNS = {"da": "DKK", "no": "NOK", "sv": "SEK"}

_CLOCKS = {
    "de": "Uhr",
    "es": "y",
    "fr": "heures",
    "it": "e",
    "ja": "\u6642",
    "ko": "\uc2dc",
    "nl": "uur",
    "pt": "e",
    "zh": "\u70b9",
}
_MINUTES = {"ja": "\u5206", "ko": "\ubd84", "zh": "\u5206"}
_WHOLE_HOURS = {"de", "fr", "ja", "ko", "nl", "zh"}
"""Languages that say the word of the clock also at a full hour."""

_KOREAN_HOURS = ["", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉", "열", "열한", "열두"]
"""Hours have the native numbers, minutes those of num2words."""

_BEFORE_NOUNS = {"de": ("eins", "ein"), "es": ("uno", "un"), "it": ("uno", "un")}
"""The numeral one, alone and before a noun."""

_MINUS = re.compile(r"(?<![\w)\]\s])[-\u2212](?=\d)|(?<=\s)[-\u2212](?=\d)")

_POINT_ORDINALS = {"da", "de", "fi", "no"}
_ORDINAL_ENDINGS = {"es": "\u00ba\u00aa\u00b0", "it": "\u00ba\u00aa\u00b0", "pt": "\u00ba\u00aa\u00b0"}
_FRENCH_ORDINAL = re.compile(r"(?<!\w)(\d+)(?:er|re|\u00e8me|e)\b")
_GERMAN_DATIVE = re.compile(r"\b(?:am|vom|zum|dem|den|beim|im)\s+\Z", re.IGNORECASE)
_SPACE = re.compile(r"\s")
_DATE = re.compile(r"(?<![\d-])(\d{4})-(\d\d)-(\d\d)(?![\d-])")
_TIME = re.compile(r"(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])")


def spoken(text: Text, language: str) -> Text:
    """The text with its numbers in words."""
    if language == "en":
        return spoken_english(text)
    if not any(map(str.isdigit, text.string)):
        return text
    return _Rules(language).apply(text)


class _Rules:
    """The rules of a language."""

    def __init__(self, language: str) -> None:
        self._language = language
        self._group, self._point = _separators(language)
        group = re.escape(self._group) if self._group.strip() else r"[ \u00a0\u202f]"
        whole = rf"\d{{1,3}}(?:{group}\d{{3}})+(?!\d)|\d+"
        self._number = rf"(?:{whole})(?:{re.escape(self._point)}\d+)?"

    def apply(self, text: Text) -> Text:
        """The text with every rule, one after the other."""
        number, language = self._number, self._language
        money = "|".join(map(re.escape, _CURRENCIES))
        units = "|".join(map(re.escape, _UNITS))
        clock = _CLOCKS.get(language, "") if language in _WHOLE_HOURS else ""
        time = re.compile(rf"{_TIME.pattern}(?:\s?{clock}(?!\w))?" if clock else _TIME.pattern)
        text = text.sub(_DATE, self._date).sub(time, self._time)
        if language in numbers.LANGUAGES:
            text = text.sub(_MINUS, f"{numbers.minus(language)} ")
        text = text.sub(re.compile(rf"(?<!\w)({money})\s?({number})"), lambda m: self._money(m[2], m[1]))
        text = text.sub(re.compile(rf"({number})\s?({money})(?!\w)"), lambda m: self._money(m[1], m[2]))
        if language == "tr":  # the sign stands first
            text = text.sub(re.compile(rf"%\s?({number})"), lambda m: _PERCENT["tr"].format(self._words(m[1])))
        text = text.sub(re.compile(rf"(?<!\w)({number})\s?({units})(?![\w/])"), self._unit)
        if language not in numbers.LANGUAGES:
            return text
        if language in _POINT_ORDINALS:
            text = text.sub(re.compile(rf"(?<![\w.])(\d{{1,4}})\.(?= (?:{_months(language)})\b)"), self._ordinal)
        if language in _ORDINAL_ENDINGS:
            text = text.sub(re.compile(rf"(?<!\w)(\d+)\.?[{_ORDINAL_ENDINGS[language]}]"), self._ordinal)
        if language == "fr":
            text = text.sub(_FRENCH_ORDINAL, self._ordinal)
        return text.sub(re.compile(rf"[+]?\d[\d ]{{7,}}\d|(?<!\w)[-\u2212]?(?:{number})|\d+"), self._plain)

    def _value(self, shown: str) -> str:
        """A number of the language with a full stop before its decimals."""
        whole = re.sub(r"[\s\u00a0\u202f]", "", shown)
        if self._group.strip():
            whole = whole.replace(self._group, "")
        return whole.replace(self._point, ".")

    def _words(self, shown: str) -> str:
        value = self._value(shown)
        return numbers.decimal(value, self._language) if self._language in numbers.LANGUAGES else shown

    def _counted(self, shown: str) -> str:
        """A number before a noun."""
        words = self._words(shown)
        alone, before = _BEFORE_NOUNS.get(self._language, ("", ""))
        if not alone or not words.endswith(alone):
            return words
        if words == "veintiuno":
            return "veinti\u00fan"
        return words.removesuffix(alone) + before

    def _date(self, match: re.Match[str]) -> str:
        from babel.dates import format_date

        try:
            day = date(int(match[1]), int(match[2]), int(match[3]))
        except ValueError:
            return match[0]
        return format_date(day, format="long", locale=_locale(self._language))

    def _time(self, match: re.Match[str]) -> str:
        language = self._language
        hour, minute = int(match[1]), int(match[2])
        clock, minutes = _CLOCKS.get(language, ""), _MINUTES.get(language, "")
        between = "" if minutes else " "
        parts = [_KOREAN_HOURS[hour] if language == "ko" and hour in range(1, 13) else self._words(str(hour))]
        if clock and (minute or language in _WHOLE_HOURS):
            parts.append(clock)
        if minute:
            parts.append((" " if language == "ko" else "") + self._words(str(minute)) + minutes)
        return between.join(parts)

    def _money(self, shown: str, sign: str) -> str:
        from babel.numbers import get_currency_name

        value = self._value(shown)
        code = _CURRENCIES[sign] or _CROWNS.get(self._language)
        if code is None:
            return f"{shown} {sign}"
        whole, _, fraction = value.partition(".")
        name = get_currency_name(code, count=Decimal(value), locale=_locale(self._language))
        if len(fraction) != 2:
            return f"{self._counted(shown)} {name}"
        name = get_currency_name(code, count=int(whole), locale=_locale(self._language))
        cents = f" {self._words(fraction.lstrip('0'))}" if int(fraction) else ""
        return f"{self._counted(whole)} {name}{cents}"

    def _unit(self, match: re.Match[str]) -> str:
        from babel.numbers import format_decimal
        from babel.units import format_unit

        language = self._language
        if match[2] == "%" and language in _PERCENT:
            return _PERCENT[language].format(self._words(match[1]))
        value = Decimal(self._value(match[1]))
        locale = _locale(language)
        said = format_unit(value, _UNITS[match[2]], length="long", locale=locale)
        return _SPACE.sub(" ", said.replace(format_decimal(value, locale=locale), self._counted(match[1]), 1))

    def _ordinal(self, match: re.Match[str]) -> str:
        words = numbers.ordinal(int(match[1]), self._language)
        before = match.string[max(0, match.start() - 20) : match.start()]
        return f"{words}n" if self._language == "de" and _GERMAN_DATIVE.search(before) else words

    def _plain(self, match: re.Match[str]) -> str:
        shown = match[0]
        if shown[0] == "+" or (len(shown) > 8 and " " in shown and not re.fullmatch(self._number, shown)):
            return numbers.digits(shown, self._language)
        if shown[0] in "-\u2212":
            return shown[0] + self._plain_value(shown[1:])
        return self._plain_value(shown)

    def _plain_value(self, shown: str) -> str:
        if len(shown) > 1 and shown[0] == "0" and shown.isdigit():
            return numbers.digits(shown, self._language)
        if len(shown) == 4 and shown.isdigit():
            return numbers.year(int(shown), self._language)
        return self._words(shown)


def _locale(language: str) -> str:
    return {"no": "nb", "zh": "zh_Hans"}.get(language, language)


@cache
def _separators(language: str) -> tuple[str, str]:
    from babel import Locale

    symbols = Locale.parse(_locale(language)).number_symbols["latn"]
    return symbols["group"], symbols["decimal"]


@cache
def _months(language: str) -> str:
    from babel.dates import get_month_names

    return "|".join(map(re.escape, get_month_names("wide", locale=_locale(language)).values()))
