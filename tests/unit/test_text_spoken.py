"""Numbers, dates, money, units and abbreviations in words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_engine.checkpoint.families import MULTILINGUAL_V3
from chatterbox_engine.text.passages import Text
from chatterbox_engine.text.say_as import say_as
from chatterbox_engine.text.spoken import spoken

ENGLISH = [
    ("We meet at 10:30.", "We meet at ten thirty."),
    ("It costs $1,234.56 or \u20ac5.",
     "It costs one thousand two hundred thirty-four dollars and fifty-six cents or five euros."),
    ("The deadline is 2025-09-28.", "The deadline is September twenty-eighth, twenty twenty-five."),
    ("Dr. Smith lives on Mill Dr. in St. Paul.", "Doctor Smith lives on Mill Drive in Saint Paul."),
    ("She turned onto Elm Dr.", "She turned onto Elm Drive."),
    ("The Dr. is in, at 5 Main St. now", "The Doctor is in, at five Main Street now"),
    ("$5 million, $1.5M, US$3, \u00a30.50; $1, \u00a52",
     "five million dollars, one point five million dollars, three dollars, fifty pence; one dollar, two yen"),
    ("12.5% (5%) of it", "twelve point five percent (five percent) of it"),
    ("-3\u00b0C, 5 km at 60 km/h, 1 kg", "minus three degrees Celsius, five kilometers at sixty kilometers per hour, "
     "one kilogram"),
    ("1/2 cup, 2\u00bd cups, 3 1/4", "one half cup, two and a half cups, three and a quarter"),
    ("the 1990s and '80s, the 1900s", "the nineteen nineties and eighties, the nineteen hundreds"),
    ("the 21st, 2,003rd.", "the twenty first, two thousand third."),
    ("version 1.2.3 (3.14)", "version one point two point three (three point one four)"),
    ("May 5, 2024", "May fifth, twenty twenty-four"),
    ("3 June 1905", "third of June, nineteen oh five"),
    ("Sept. 3rd", "September third"),
    ("12/25/2000 at 0:05", "December twenty-fifth, two thousand at zero oh five"),
    ("At 10:30 to talk, 3 ambulances at 9:05pm.", "At ten thirty to talk, three ambulances at nine oh five PM."),
    ("AT&T, 2+2=4", "AT and T, two plus two equals four"),
    ("No. 5, please", "Number five, please"),
    ("Call 555-123-4567", "Call five five five, one two three, four five six seven"),
    ("in 1999, at 9 a.m.", "in nineteen ninety nine, at nine AM"),
    ("Nothing to do here.", "Nothing to do here."),
]  # fmt: skip

OTHERS = [
    ("de", "Am 28. September 2025 um 10:30 1.234,56 \u20ac",
     "Am achtundzwanzigsten September zweitausendf\u00fcnfundzwanzig um zehn Uhr drei\u00dfig "
     "eintausendzweihundertvierunddrei\u00dfig Euro sechsundf\u00fcnfzig"),
    ("de", "5 %, 12,5 km/h, 1999, 007", "f\u00fcnf Prozent, zw\u00f6lf Komma f\u00fcnf Kilometer pro Stunde, "
     "neunzehnhundertneunundneunzig, null null sieben"),
    ("fr", "Le 1er mai, 12,50 \u20ac \u00e0 10:00", "Le premier mai, douze euros cinquante \u00e0 dix heures"),
    ("fr", "1 234 km, le 21e", "mille deux cent trente-quatre kilom\u00e8tres, le vingt et uni\u00e8me"),
    ("es", "1.500 euros, 10:30, 5 kg, 3\u00ba", "mil quinientos euros, diez y treinta, cinco kilogramos, tercero"),
    ("it", "5,50 \u20ac, 3\u00b0", "cinque euro cinquanta, terzo"),
    ("pt", "R$ 5, 5%", "cinco Reais brasileiros, cinco por cento"),
    ("nl", "\u20ac 5,50 om 10:30", "vijf euro vijftig om tien uur dertig"),
    ("da", "3. maj, 5 %", "tredje maj, fem procent"),
    ("no", "5 kr", "fem norske kroner"),
    ("sv", "5 kr, 3,5 km", "fem svenska kronor, tre komma fem kilometer"),
    ("fi", "3. toukokuuta", "kolmas toukokuuta"),
    ("pl", "100 z\u0142", "sto z\u0142otych polskich"),
    ("tr", "%5, 3,5 km", "y\u00fczde be\u015f, \u00fc\u00e7 virg\u00fcl be\u015f kilometre"),
    ("ru", "5 %", "\u043f\u044f\u0442\u044c \u043f\u0440\u043e\u0446\u0435\u043d\u0442\u043e\u0432"),
    ("ko", "10:30, 5%", "\uc5f4\uc2dc \uc0bc\uc2ed\ubd84, \uc624 \ud37c\uc13c\ud2b8"),
    ("ja", "10:30", "\u5341\u6642\u4e09\u5341\u5206"),
    ("zh", "5%", "\u767e\u5206\u4e4b5"),
    ("hi", "5%", "5 \u092a\u094d\u0930\u0924\u093f\u0936\u0924"),
    ("ar", "5%", "\u062e\u0645\u0633\u0629 \u0628\u0627\u0644\u0645\u0626\u0629"),
    ("el", "5%", "5 \u03c4\u03bf\u03b9\u03c2 \u03b5\u03ba\u03b1\u03c4\u03cc"),
    ("sw", "5%", "asilimia 5"),
    ("ms", "5%", "5 peratus"),
    ("he", "5%", "\u05d7\u05de\u05e9 \u05d0\u05d7\u05d5\u05d6"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), ENGLISH)
def test_english_is_read_aloud(text: str, words: str) -> None:
    assert spoken(Text.of(text), "en").string == words


@pytest.mark.parametrize(("language", "text", "words"), OTHERS)
def test_other_languages_are_read_aloud(language: str, text: str, words: str) -> None:
    assert spoken(Text.of(text), language).string == words
    assert spoken(spoken(Text.of(text), language), language).string == words


def test_words_lead_back_to_the_digits_that_they_stand_for() -> None:
    source = "Pay $5.50 at 10:30 to Dr. Lee"
    text = spoken(Text.of(source), "en")
    for words, digits in (("five dollars and fifty cents", "$5.50"), ("ten thirty", "10:30"), ("Doctor", "Dr.")):
        at = text.string.index(words)
        assert source[slice(*text.source(at, at + len(words)))] == digits


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text("0123456789.,:-/$%+#() akms\u20ac\u00bd\u0665", max_size=8),
            st.sampled_from(["Dr. ", "May 5", "10:30 ", " 5 km", "1990s", "2025-09-28", "1er ", "3. Mai", "\ue000"]),
        ),
        max_size=8,
    ),
    st.sampled_from(MULTILINGUAL_V3.languages),
)
def test_no_text_of_digits_and_signs_fails(pieces: list[str], language: str) -> None:
    source = "".join(pieces)
    text = spoken(Text.of(source), language)
    assert len(text.string) == len(text.starts) == len(text.ends)
    assert list(text.starts) == sorted(text.starts)
    if any(map(str.isalnum, source)):
        assert any(map(str.isalnum, text.string))


@pytest.mark.parametrize(
    ("text", "way", "form", "language", "words"),
    [
        ("A1b", "characters", "", "en", "A one b"),
        ("W3C", "spell-out", "", "hi", "W 3 C"),
        ("120", "digits", "", "de", "eins zwei null"),
        ("555-1234", "telephone", "", "en", "five five five one two three four"),
        ("21", "ordinal", "", "en", "twenty-first"),
        ("1234", "cardinal", "", "fr", "mille deux cent trente-quatre"),
        ("28/9/2025", "date", "dmy", "en", "September twenty-eighth, twenty twenty-five"),
        ("10:30", "time", "hms24", "en", "ten thirty"),
        ("$5", "currency", "", "en", "five dollars"),
        ("5 km", "unit", "", "de", "f\u00fcnf Kilometer"),
        ("abc", "cardinal", "", "en", None),
        ("31/2/2025", "date", "dmy", "en", None),
        ("2025", "date", "y", "en", None),
        ("...", "characters", "", "en", None),
        ("abc", "digits", "", "en", None),
        ("5", "song", "", "en", None),
    ],
)
def test_say_as_is_read_as_it_says(text: str, way: str, form: str, language: str, words: str | None) -> None:
    assert say_as(text, way, form, language) == words
