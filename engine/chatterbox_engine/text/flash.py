"""English in the words that Chatterbox-Flash was trained on.

Source: the package chatterbox-flash 0.1.0, `text_norm`: the same words for a text, odd ones included, in linear time
and with places in the source. The order of the steps matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from unicodedata import normalize

from chatterbox_engine.text.passages import Edit, Text

# fmt: off
_ABBREVIATIONS = {
    "mrs": "misess", "mr": "mister", "dr": "doctor", "st": "saint", "jr": "junior", "maj": "major", "gen": "general",
    "drs": "doctors", "rev": "reverend", "lt": "lieutenant", "hon": "honorable", "sgt": "sergeant", "capt": "captain",
    "esq": "esquire", "ltd": "limited", "col": "colonel", "ft": "feet", "abbrev": "abbreviation", "ave": "avenue",
    "abstr": "abstract", "addr": "address", "jan": "january", "feb": "february", "mar": "march", "apr": "april",
    "jul": "july", "aug": "august", "sep": "september", "sept": "september", "oct": "october", "nov": "november",
    "dec": "december", "mon": "monday", "tue": "tuesday", "wed": "wednesday", "thur": "thursday", "fri": "friday",
    "sec": "second", "min": "minute", "mo": "month", "yr": "year", "cal": "calorie", "dept": "department",
    "gal": "gallon", "kg": "kilogram", "km": "kilometer", "mt": "mount", "oz": "ounce", "vol": "volume",
    "vs": "versus", "yd": "yard", "e.g": "eg", "i.e": "ie", "etc": "etc", "ai": "a i", "cms": "c m s", "cdn": "c d n",
    "ceo": "c e o", "tts": "t t s",
}
# fmt: on
_ABBREVIATION = re.compile(rf"\b({'|'.join(map(re.escape, _ABBREVIATIONS))})\b\.?", re.IGNORECASE)

_SIGNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile("[\u2013\u2014]"), "-"),
    (re.compile(r"(?<=\d\s)>(?=\s\d)"), "is greater than"),
    (re.compile(r"(?<=\d\s)<(?=\s\d)"), "is less than"),
    (re.compile(r"(?<=\D)\s*-\s+(?=\D)"), ", "),
    (re.compile(r"(?<=\D)\s+-\s*(?=\D)"), ", "),
    (re.compile(r"(?<=[a-z])-(?=[a-z])", re.IGNORECASE), " "),
    (re.compile(r"(?<=[a-z])-(?=\d)", re.IGNORECASE), " "),
    (re.compile(r"(?<=\d)-(?=[a-z])", re.IGNORECASE), " "),
    (re.compile(r"(?<=\d)-(?=\d)"), " - "),
)

_COMPATIBLE = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")
_SPACES = re.compile(r"\s+")
_WORD = re.compile(r"\S+")
_TIME = re.compile(r"(\d{1,2})([.:])?\s*(\d{2})?\s*([ap]\.?m\.?)?", re.IGNORECASE)
_NO_LETTERS = re.compile(r"\s?[^a-zA-Z]+\s?")
_GROUPED = re.compile(r"(?:\(?[A-Z]{2,3})?([$|\u00a3\u00a5\u20ac#(]*[0-9][0-9,.]+[0-9])(\S+)?")
_YEAR = re.compile(
    r"(to|years|year|from|after|before|by|until|in|since|around|circa|during)\s?(1[1-9]|20)([0-9]{2})($|-|\s-|\D)",
    re.IGNORECASE,
)
_LARGE_MONEY = re.compile(r"(\(?[$\u00a3\u00a5\u20ac])([0-9]*\.?[0-9]+)(?:([BKMT])|\s([BMbmTtr]+illion))([.,?!)]+)?")
_DOLLARS = re.compile(r"(\(?\$)([0-9,]*\.?[0-9]+)([.|,?!)]+)?")
_HASH = re.compile(r"#([0-9]+(?:\.[0-9]+)?)([.,?!])?")
_DECIMAL = re.compile(r"([0-9]+)\.([0-9]+)([.,?!])?")
_ORDINAL = re.compile(r"([0-9]+)(?:st|nd|rd|th)")
_NUMBER = re.compile(r"([0-9]+)([.,?!])?")
_RUN = re.compile(r"\d+")

_CURRENCIES = {"$": "dollars", "\u00a3": "pounds", "\u00a5": "yen", "\u20ac": "euros"}
_SCALES = {"B": "billion", "K": "thousand", "M": "million", "T": "trillion"}
_MONEY = {"\u00a3": ("pound", "pounds", r"[0-9.]*[0-9]+"), "\u00a5": ("yen", "yen", "[0-9]+")} | {
    "\u20ac": ("euro", "euros", r"[0-9.]*[0-9]+")
}
_MONIES = [(re.compile(rf"\(?{sign}({value})[.,?!]?"), one, many) for sign, (one, many, value) in _MONEY.items()]
_UNITS = [
    (re.compile(rf"([0-9.]*[0-9]+){symbol}([.,?!])?"), one, many)
    for symbol, one, many in (
        ("ml", "milliliter", "milliliters"),
        ("cl", "centiliter", "centiliters"),
        ("g", "gram", "grams"),
        ("kg", "kilogram", "kilograms"),
        ("mm", "millimeter", "millimeters"),
        ("cm", "centimeter", "centimeters"),
        ("km", "kilometer", "kilometers"),
        ("in", "inch", "inches"),
        ("ft", "foot", "feet"),
        ("l", "liter", "liters"),
        ("m", "meter", "meters"),
        ("yds?", "yard", "yards"),
        ("s[ecs]*", "second", "seconds"),
    )
]
_PERCENT = re.compile(r"([0-9]{1,3}(?:,[0-9]{3})*)%([.,?!])?")

# fmt: off
_ONES = (
    "", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
_TENS = (
    "", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)
_GROUPS = (
    "", "thousand", "million", "billion", "trillion", "quadrillion",
)
# fmt: on
_ORDINALS = (
    ("one", "first"),
    ("two", "second"),
    ("three", "third"),
    ("five", "fifth"),
    ("eight", "eighth"),
    ("nine", "ninth"),
    ("twelve", "twelfth"),
    ("ty", "tieth"),
)
_DIGITS = ("zero", *_ONES[1:10])


def flash(text: Text) -> Text:
    """The text in one line, with numbers, money, times, telephone numbers and abbreviations in words."""
    text = text.sub(_COMPATIBLE, lambda match: normalize("NFKC", match[0])).sub(_SPACES, " ")
    text = text.sub(_ABBREVIATION, lambda match: _ABBREVIATIONS[match[1].lower()])
    for pattern, words in _SIGNS:
        text = text.sub(pattern, words)
    text = text.sub(_TIME, _time).sub(_NO_LETTERS, _telephone)
    text = text.sub(_GROUPED, lambda match: match[1].replace(",", "") + (match[2] or ""))
    text = text.sub(_YEAR, _year).sub(_YEAR, _year)  # the second one finds those that the first one's ends hid
    return text.edited(_words(text.string))


def _time(match: re.Match[str]) -> str:
    hour, sign, minute, half = match.groups()
    if not half and not (sign == ":" and minute):
        return match[0]
    minutes = int(minute or 0)
    said = f" {'oh ' if minutes < 10 else ''}{_standard(minutes)}" if minutes else ""
    return _standard(int(hour)) + said + (f" {half.replace('.', '').upper()}" if half else "")


def _telephone(match: re.Match[str]) -> str:
    shown = match[0]
    number = shown.rstrip(".!?,;")
    if not _is_telephone(number):
        return shown
    groups: list[str] = re.findall(r"\d+", number)
    said = [group for run in groups for group in (_telephone_groups(run) if len(run) > 4 else [run])]
    words = ", ".join(" ".join(_DIGITS[int(digit)] for digit in group) for group in said)
    before = " " if number[:1].isspace() else ""
    after = " " if number[-1:].isspace() else ""
    return before + words + after + shown[len(number) :]


def _is_telephone(number: str) -> bool:
    if number.count(".") == 1 or not set(number) <= set("0123456789.+-()[] "):
        return False
    if not 5 < sum(map(str.isdigit, number)) < 14:
        return False
    parts = ["".join(filter(str.isdigit, part)) for part in number.split("-")]
    years = len(parts) == 2 and all(len(part) == 4 and part[0] in "12" for part in parts)
    return not (years and "+" not in number and "." not in number)


def _telephone_groups(run: str, longest: int = 4) -> list[str]:
    if len(run) <= longest:
        return [run] if run else []
    if len(run) == 5:
        return [run[:2], run[2:]]
    if len(run) == 8:
        return [run[:2], run[2:5], run[5:]]
    return [*_telephone_groups(run[:-longest], 3), run[-longest:]]


def _year(match: re.Match[str]) -> str:
    before, century, rest, after = match.groups()
    if rest[0] == "0":
        said = century + rest if century == "20" else f"{century} oh {rest[1]}"
    else:
        said = f"{number_words(int(century))} {number_words(int(rest))}"
    return f"{before} {said}{' to' if '-' in after else after}"


def _words(string: str) -> Iterator[Edit]:
    """The words that hold numbers, in others."""
    words = list(_WORD.finditer(string))
    skip = False
    for index, word in enumerate(words):
        if skip or not any(map(str.isdigit, word[0])):
            skip = False
            continue
        end = word.end()
        said = _large_money(word[0])
        if said is None and index + 1 < len(words):
            following = words[index + 1]
            said = _large_money(string[word.start() : following.end()])
            if said is not None:
                skip, end = True, following.end()
        said = _digits_said(said if said is not None else _word(word[0]))
        yield word.start(), end, said


def _large_money(shown: str) -> str | None:
    match = _LARGE_MONEY.fullmatch(shown)
    if match is None:
        return None
    sign, value, scale, name, after = match.groups()
    whole, _, fraction = value.partition(".")
    said = f"{whole} point {' '.join(fraction)}" if "." in value else whole
    return f"{said} {name or _SCALES[scale]} {_CURRENCIES[sign.strip('(')]}{after or ''}"


_Rule = Callable[[str], "str | None"]


def _word(shown: str) -> str:
    """What one of the rules for whole words makes of a word; the first that fits."""
    for rule in (_other_money, _unit, _dollars, _hash, _decimal, _ordinal):
        said = rule(shown)
        if said is not None:
            shown = said
    return shown


def _other_money(shown: str) -> str | None:
    for pattern, one, many in _MONIES:
        if match := pattern.fullmatch(shown):
            whole, *rest = match[1].split(".")
            return " ".join([whole, one if int(whole or 0) == 1 else many, *rest[:1]])
    return None


def _unit(shown: str) -> str | None:
    if match := _PERCENT.fullmatch(shown):
        return f"{match[1]} {'%' if match[1] == '1' else 'percent'}{match[2] or ''}"
    for pattern, one, many in _UNITS:
        if match := pattern.fullmatch(shown):
            whole, *rest = match[1].split(".")
            said = f"{whole} point {' '.join(rest[0])} {many}" if rest else f"{whole} {one if whole == '1' else many}"
            return said + (match[2] or "")
    return None


def _dollars(shown: str) -> str | None:
    match = _DOLLARS.fullmatch(shown)
    if match is None:
        return None
    whole, _, fraction = match[2].replace(",", "").partition(".")
    dollars, cents = int(whole or 0), int(fraction or 0)
    parts = [f"{dollars} dollar{'s' * (dollars != 1)}"] * bool(dollars) + [f"{cents} cent{'s' * (cents != 1)}"] * bool(
        cents
    )
    return (", ".join(parts) or "zero dollars") + (match[3] or "")


def _hash(shown: str) -> str | None:
    match = _HASH.fullmatch(shown)
    return None if match is None else f"number {match[1]}{match[2] or ''}"


def _decimal(shown: str) -> str | None:
    match = _DECIMAL.fullmatch(shown)
    if match is None:
        return None
    zeros = len(match[2]) - len(match[2].lstrip("0"))
    fraction = ["zero"] * zeros + list(match[2][zeros:])
    return f"{match[1]} point {' '.join(fraction)}{match[3] or ''}"


def _ordinal(shown: str) -> str | None:
    match = _ORDINAL.fullmatch(shown)
    if match is None:
        return None
    words = number_words(int(match[1]))
    for ending, other in _ORDINALS:
        if words.endswith(ending):
            return words.removesuffix(ending) + other
    return f"{words}th"


def _digits_said(shown: str) -> str:
    """The numbers in a word, from left to right; one that another one is a part of is not found any more."""
    for match in _NUMBER.finditer(shown):
        number, after = match[1], match[2] or ""
        run = _RUN.search(shown)
        if run is not None and run[0] == number:
            shown = shown.replace(number + after, number_words(int(number)) + after)
    return shown


def number_words(number: int) -> str:
    """A number as upstream says it: without "and", and in hundreds below 3000."""
    if number >= 10**18:
        return str(number)
    if number == 0:
        return "zero"
    if number % 100 == 0 and number % 1000 and number < 3000:
        return f"{_standard(number // 100)} hundred"
    return _standard(number)


def _standard(number: int, group: int = 0) -> str:
    parts = [_standard(number // 1000, group + 1)] if number >= 1000 else []
    number %= 1000
    if number >= 100:
        parts.append(f"{_ONES[number // 100]} hundred")
    rest = number % 100
    parts += [_ONES[rest]] if rest < len(_ONES) else [_TENS[rest // 10], _ONES[rest % 10]]
    if number:
        parts.append(_GROUPS[group])
    return " ".join(filter(None, parts))
