"""English as it is read aloud: what upstream's normaliser (`flash`) lacks or misreads, then that one."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date

from chatterbox_engine.text.flash import flash, number_words
from chatterbox_engine.text.numbers import cardinal, decimal, digits, ordinal, year
from chatterbox_engine.text.passages import Edit, Text

# fmt: off
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)
# fmt: on
_MONTH = "|".join([*MONTHS, *(rf"{month[:3]}\.?" for month in MONTHS if month != "May"), r"Sept\.?"])
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "\u00a3": ("pound", "pounds", "penny", "pence"),
    "\u20ac": ("euro", "euros", "cent", "cents"),
    "\u00a5": ("yen", "yen", "sen", "sen"),
    "\u20b9": ("rupee", "rupees", "paisa", "paise"),
}
_SCALES = {"k": "thousand", "m": "million", "b": "billion", "t": "trillion", "bn": "billion"}
_UNITS = {
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "mph": ("mile per hour", "miles per hour"),
    "m/s": ("meter per second", "meters per second"),
    "km": ("kilometer", "kilometers"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "kg": ("kilogram", "kilograms"),
    "g": ("gram", "grams"),
    "m": ("meter", "meters"),
    "mg": ("milligram", "milligrams"),
    "ml": ("milliliter", "milliliters"),
    "l": ("liter", "liters"),
    "L": ("liter", "liters"),
    "lbs": ("pounds", "pounds"),
    "lb": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "ft": ("foot", "feet"),
    "yd": ("yard", "yards"),
    "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"),
    "GHz": ("gigahertz", "gigahertz"),
    "Hz": ("hertz", "hertz"),
    "kB": ("kilobyte", "kilobytes"),
    "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"),
    "kWh": ("kilowatt hour", "kilowatt hours"),
    "kW": ("kilowatt", "kilowatts"),
    "\u00b0C": ("degree Celsius", "degrees Celsius"),
    "\u00b0F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "\u00b0": ("degree", "degrees"),
    "ms": ("millisecond", "milliseconds"),
    "kcal": ("kilocalorie", "kilocalories"),
    "mm\u00b2": ("square millimeter", "square millimeters"),
    "cm\u00b2": ("square centimeter", "square centimeters"),
    "m\u00b2": ("square meter", "square meters"),
    "km\u00b2": ("square kilometer", "square kilometers"),
    "m\u00b3": ("cubic meter", "cubic meters"),
}
_SHORTENED = {
    "min": ("minute", "minutes"),
    "sec": ("second", "seconds"),
    "hrs": ("hour", "hours"),
    "hr": ("hour", "hours"),
    "yrs": ("year", "years"),
    "yr": ("year", "years"),
    "wks": ("week", "weeks"),
    "wk": ("week", "weeks"),
}
"""Units that a full stop may follow."""

_PER = "second|minute|hour|day|night|week|month|year|person|head|page|word|kg|km|mile|lb"
_FRACTIONS = {
    "\u00bd": ("one half", "a half"),
    "\u00bc": ("one quarter", "a quarter"),
    "\u00be": ("three quarters", "three quarters"),
    "\u2153": ("one third", "a third"),
    "\u2154": ("two thirds", "two thirds"),
}
_SHORT_FRACTIONS = {"1/2": "\u00bd", "1/4": "\u00bc", "3/4": "\u00be", "1/3": "\u2153", "2/3": "\u2154"}
_SIGNS = {"+": "plus", "=": "equals", "\u00d7": "times", "\u00f7": "divided by", "&": "and", "@": "at"}
_TELEPHONE_DIGITS = range(6, 14)
_ADDRESS_GROUPS = 4
"""Of an Internet address."""

_JOINED = re.compile(r"(?<=[A-Z])(?=\d)|(?<=\d)(?=[A-Z](?![A-Za-z]))|(?<=\d)x(?=\d)")
"""Where letters and digits stand together: MP3, 3D, 4x4."""

_IN_A_YEAR = "|".join(
    f"(?<=[{word[0].upper()}{word[0]}]{word[1:]} )" for word in ("in", "since", "from", "to", "by", "until")
)

_NO_NAMES = {"The", "A", "My", "Our", "Your", "His", "Her", "Their", "This", "That"}
"""Words that begin a sentence, before a title."""

_SAID = "\ue000"
"""A private character for a part that is in words already, which keeps upstream's rules from it."""

Say = Callable[[re.Match[str]], "str | None"]
"""A match in words; None leaves it to upstream's rules."""


def spoken_english(text: Text) -> Text:
    """Numbers, dates, money, units, titles and abbreviations in words, in one line."""
    text = text.sub(re.compile(_SAID), "").sub(_JOINED, lambda match: " by " if match[0] else " ")
    found: list[Edit] = []
    taken = bytearray(len(text))
    for pattern, say in _RULES:
        for match in pattern.finditer(text.string):
            start, end = match.span()
            if not any(taken[start:end]) and (words := say(match)) is not None:
                found.append((start, end, words))
                taken[start:end] = b"1" * (end - start)
    found.sort()
    said = iter(words.strip() if words[0] == " " else words for _, _, words in found)
    edits = ((start, end, f" {_SAID} " if words[0] == " " else _SAID) for start, end, words in found)
    return flash(text.edited(edits)).sub(re.compile(_SAID), lambda _match: next(said))


def number(shown: str) -> str:
    """A number with its decimals as upstream says it, without hyphens."""
    whole, _, fraction = shown.replace(",", "").partition(".")
    return f"{number_words(int(whole))} point {digits(fraction, 'en')}" if fraction else number_words(int(whole))


def money(sign: str, amount: str, scale: str = "") -> str:
    """An amount of a currency."""
    one, many, cent, cents = _CURRENCIES[sign]
    whole, _, fraction = amount.replace(",", "").partition(".")
    if scale:
        return f"{decimal(amount.replace(',', ''), 'en')} {_SCALES.get(scale.lower(), scale)} {many}"
    if fraction and len(fraction) != 2:
        return f"{decimal(amount.replace(',', ''), 'en')} {many}"
    parts = (
        [f"{cardinal(int(whole), 'en')} {one if int(whole) == 1 else many}"]
        if int(whole) or not int(fraction or 0)
        else []
    )
    if int(fraction or 0):
        parts.append(f"{cardinal(int(fraction), 'en')} {cent if int(fraction) == 1 else cents}")
    return " and ".join(parts)


def day(when: date) -> str:
    """A date."""
    return f"{MONTHS[when.month - 1]} {ordinal(when.day, 'en')}, {year(when.year, 'en')}"


def _day(year_: str, month: str, day_: str) -> str | None:
    try:
        return day(date(int(year_), int(month), int(day_)))
    except ValueError:
        return None


def _named_day(month: str, day_: str, year_: str | None, *, day_first: bool) -> str | None:
    if not 1 <= int(day_) <= 31:
        return None
    name = next(name for name in MONTHS if name.startswith(month[:3]))
    said = f"{ordinal(int(day_), 'en')} of {name}" if day_first else f"{name} {ordinal(int(day_), 'en')}"
    return f"{said}, {year(int(year_), 'en')}" if year_ else said


def _time(match: re.Match[str]) -> str:
    """As upstream says it, which however loses the space after it, and takes "amber" for a half of the day."""
    hour, minute = int(match[1]), int(match[2])
    said = f" {'oh ' if minute < 10 else ''}{number(str(minute))}" if minute else ""
    half = f" {match[3].upper()}M" if match[3] else ""
    ends = match[0].endswith(".") and not match.string[match.end() :].strip()
    return number(str(hour)) + said + half + "." * ends


def _unit(match: re.Match[str]) -> str:
    one, many = _UNITS[match[2]]
    return f"{number(match[1])} {one if match[1] == '1' else many}"


def _shortened(match: re.Match[str]) -> str:
    one, many = _SHORTENED[match[2]]
    ends = match[0].endswith(".") and not re.match(r"\s+[^A-Z\s]", match.string[match.end() :])
    return f"{number(match[1])} {one if match[1] == '1' else many}{'.' * ends}"


def _version(match: re.Match[str]) -> str | None:
    groups = match[0].split(".")
    if len(groups) == _ADDRESS_GROUPS and all(len(group) < 4 for group in groups):
        return " point ".join(digits(group, "en") for group in groups)
    if sum(map(str.isdigit, match[0])) in _TELEPHONE_DIGITS:
        return None
    return " point ".join(map(number, groups))


def _fraction(match: re.Match[str]) -> str:
    alone, added = _FRACTIONS[_SHORT_FRACTIONS.get(match[2], match[2])]
    return f"{number(match[1])} and {added}" if match[1] else alone


def _decade(match: re.Match[str]) -> str:
    tens = cardinal(int(match[2] + "0"), "en") if match[2] != "0" else "hundred"
    tens = tens.removesuffix("y") + "ies" if tens.endswith("y") else f"{tens}s"
    return f"{cardinal(int(match[1]), 'en')} {tens}" if match[1] else tens


def _title(person: str, street: str) -> Say:
    """A title before a name; the kind of a street after one."""

    def say(match: re.Match[str]) -> str | None:
        string, end = match.string, match.end()
        before = re.search(r"(\S+)\s+$", string[max(0, match.start() - 40) : match.start()])
        name = before[1] if before is not None else ""
        named = name[:1].isalnum() and not name[0].islower() and name[-1].isalnum() and name not in _NO_NAMES
        follows_name = re.match(r"\s+[A-Z]", string[end:]) is not None
        if follows_name or not named:
            return person
        return street + ("." if match[0].endswith(".") and not string[end:].strip() else "")

    return say


_RULES: tuple[tuple[re.Pattern[str], Say], ...] = (
    (re.compile(r"(?<![\d-])(\d{4})-(\d\d)-(\d\d)(?![\d-])"), lambda m: _day(*m.groups())),
    (re.compile(r"(?<![\d/])(\d\d?)/(\d\d?)/(\d{4})(?![\d/])"), lambda m: _day(m[3], m[1], m[2])),
    (
        re.compile(rf"\b({_MONTH}) (\d\d?)(?:st|nd|rd|th)?(?:,? (\d{{4}}))?(?![\w%])(?![:.,]\d)"),
        lambda m: _named_day(m[1], m[2], m[3], day_first=False),
    ),
    (
        re.compile(rf"(?<![\d.:,$#])(\d\d?)(?:st|nd|rd|th)? ({_MONTH})\b(?:,? (\d{{4}})\b)?"),
        lambda m: _named_day(m[2], m[1], m[3], day_first=True),
    ),
    (
        re.compile(
            rf"(?:\b[A-Z]{{1,2}})?([{''.join(_CURRENCIES)}])\s?({_NUMBER})(?![\d,]*\d)"
            r"(?:\s?([kKMBT]|bn)\b|\s(thousand|million|billion|trillion)\b)?"
        ),
        lambda m: money(m[1], m[2], m[3] or m[4] or ""),
    ),
    (re.compile(r"(?<![\w.,])(\d+)\s?\u00a2"), lambda m: f"{number(m[1])} {'cent' if m[1] == '1' else 'cents'}"),
    (re.compile(rf"(?<=\d)/(?=(?:{_PER})\b)"), lambda _m: " per "),
    (re.compile(r"(?<![\w.,'])([2-8])'\s?(1[01]|\d)(?:\"|''|(?!\w))"), lambda m: f"{number(m[1])} foot {number(m[2])}"),
    (re.compile(rf"(?<![\w.,])({_NUMBER})\s?%"), lambda m: f"{number(m[1])} percent"),
    (re.compile(rf"(?<![\w.,])({_NUMBER})\s?({'|'.join(map(re.escape, _UNITS))})(?![\w/])"), _unit),
    (re.compile(rf"(?<![\w.,])({_NUMBER})\s?({'|'.join(_SHORTENED)})\b\.?"), _shortened),
    (re.compile(rf"(?<![\w.,])(?:(\d+)\s?)?([{''.join(_FRACTIONS)}])"), _fraction),
    (re.compile(rf"(?<![\w.,/])(?:(\d+)\s)?({'|'.join(_SHORT_FRACTIONS)})(?![\w/])"), _fraction),
    (re.compile(r"\b(1[1-9]|20)(\d)0s\b"), _decade),
    (re.compile(rf"(?:{_IN_A_YEAR})(1[1-9])00\b(?![,.:]?\d)"), lambda m: f"{number(m[1])} hundred"),
    (re.compile(r"(?:(?<=[Cc]all )|(?<=[Dd]ial ))\d{3}\b(?![-.,:\s]?\d)"), lambda m: digits(m[0], "en")),
    (re.compile(r"(?<![\w.,:/$#+-])(?<!\d\s)0\d+(?![\w%])(?!\s?[-.,:/]?\d)"), lambda m: digits(m[0], "en")),
    (re.compile(r"(?<=\d)\s?\u2013\s?(?=\d)"), lambda _m: " to "),
    (re.compile(r"(?<!\w)['\u2019]?()(\d)0s\b"), _decade),
    (
        re.compile(r"(?<![\w.,])(\d[\d,]*)(?:st|nd|rd|th)\b"),
        lambda m: ordinal(int(m[1].replace(",", "")), "en").replace("-", " "),
    ),
    (re.compile(r"(?<![\w.])\d+(?:\.\d+){2,}(?![\w.]*\w)"), _version),
    (re.compile(r"(?<![\w.,:])\d+\.\d+(?![\w]|\.\d|,\d|\s?[aApP]\.?[mM])"), lambda m: number(m[0])),
    (re.compile(r"(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])(?:\s?([aApP])(?:\.[mM]\.|[mM](?!\w)))?"), _time),
    (re.compile(r"(?<![\w.,])\d+(?=\s[aApP]\.?[mM]\w)"), lambda m: number(m[0])),
    (re.compile(r"(?<![\w)\]\s])[-\u2212](?=\d)|(?<=\s)[-\u2212](?=\d)"), lambda _m: "minus "),
    (re.compile(r"\bNo\.\s?(?=\d)"), lambda _m: "Number "),
    (re.compile(r"\bProf\.(?=\s[A-Z])"), lambda _m: "Professor"),
    (re.compile(r"\bDr\b\.?"), _title("Doctor", "Drive")),
    (re.compile(r"\bSt\b\.?"), _title("Saint", "Street")),
    (re.compile(r"(?<=\d)\s?([+=\u00d7\u00f7])\s?(?=\d)|\s?([&@])\s?(?=\w)"), lambda m: f" {_SIGNS[m[1] or m[2]]} "),
)
"""In the order in which they are asked; what one has said the others leave alone."""
