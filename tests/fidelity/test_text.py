"""Normalisation and tokens equal upstream's `punc_norm` and `EnTokenizer` on a table of varied strings."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.text.english import Tokenizer, normalise
from chatterbox_engine.text.passages import Text

_PLAIN = """
hello
Hello there, how are you today?
the quick brown fox jumps over the lazy dog
THE QUICK BROWN FOX
It's 3:45 pm; meet me at No. 7 - don't be late...
Wait... what? No!
Well, well -- well.
"Quoted," she said.
(parenthesised) [bracketed] {braced}
e-mail me at someone@example.com or call +1 (555) 010-9999
1,234,567.89
3.14159
50% off! Only $9.99
100 km/h
a
I
.
!
-
,
:
;
'
[SPACE]
[START] [STOP] [UNK] [PAD]
[laughter] hello
C++ & C# < > = ~ ^ | \\ / _ * `
underscore_name and camelCase
MiXeD cAsE
naive cafe
dr. smith and mr. jones, ph.d.
one - two - three
one -two- three
trailing comma,
trailing dash-
trailing colon:
ends with ellipsis...
.leading full stop
...leading ellipsis
 ,comma after a space
a , b , c
x ;y ;z
a:b:c
""".strip("\n").split("\n")
_UNICODE = [
    "\u201cCurly quotes\u201d and \u2018single\u2019 ones",
    "It\u2019s\u2026 fine",
    "dash \u2014 em, en \u2013 dash, minus \u2212",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\uff01",
    "\uc548\ub155\ud558\uc138\uc694?",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u00e9t\u00e9 \u00fcber \u00e5ngstr\u00f6m \u00f1and\u00fa",
    "\u00dfharp start",
    "\u01c6 digraph start",
    "\ufb01ligature start",
    "e\u0301 combining",
    "\U0001f600 emoji \U0001f469\u200d\U0001f680 joined \U0001f1eb\U0001f1f7",
    "\U0001f600",
    "zero\u200bwidth\u200d joiner\ufeff",
    "no\u00a0break\u2007space\u202fnarrow",
    "\u3000ideographic\u3000space\u3000",
    "line\u2028separator\u2029paragraph",
    "\u00bd \u00b2 \u2460 \u2167",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 mathematical",
    "\u00bfQu\u00e9? \u00a1No!",
    "nul\x00byte \x07 \x1b[31m",
]
_SPACES = [
    "",
    " ",
    "\n",
    "\t \r\n",
    "  two  spaces  ",
    "tab\tand\nnew\r\nline",
    "\n\nparagraphs\n\nof\n\ntext\n",
    "a\x0bb\x0cc",
]
_LONG = ["word " * 2000, "x" * 10_000, "Sentence one. " * 700, "\u4f60\u597d\u3002" * 3334, "\n" * 10_000, "1 " * 5000]
_HEADS = ["", "a", "A", "\u00e9", "7", " ", "(", '"']
_MARKS = [
    " - ",
    "...",
    "\u2026",
    ":",
    ";",
    "\u2014",
    "\u2013",
    " ,",
    " ;",
    ". ",
    "--",
    "\u201d",
    "\u2019",
    "! ",
    "?!",
    " -, ",
]
_COMBINED = [f"{head}x{mark}y{mark}" for head, mark in itertools.product(_HEADS, _MARKS)]
TABLE = [*_PLAIN, *_UNICODE, *_SPACES, *_LONG, *_COMBINED]


def test_the_table_holds_at_least_200_strings() -> None:
    assert len(set(TABLE)) >= 200


@pytest.mark.parametrize("text", TABLE, ids=lambda text: ascii(text[:24]))
def test_normalisation_equals_upstreams(text: str) -> None:
    from chatterbox.tts import punc_norm

    assert normalise(Text.of(text)).string == punc_norm(text)


@pytest.fixture(scope="module")
def theirs(tiny: Checkpoint) -> Any:
    from chatterbox.models.tokenizers import EnTokenizer

    return EnTokenizer(str(tiny.tokenizer_path))


@pytest.fixture(scope="module")
def ours(tiny: Checkpoint) -> Tokenizer:
    return Tokenizer(tiny.tokenizer_path)


@pytest.mark.parametrize("text", TABLE, ids=lambda text: ascii(text[:24]))
def test_tokens_equal_upstreams(text: str, ours: Tokenizer, theirs: Any) -> None:
    for form in (Text.of(text), normalise(Text.of(text))):
        assert ours.encode(form).ids == theirs.text_to_tokens(form.string)[0].tolist()
