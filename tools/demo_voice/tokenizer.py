"""Letter-to-sound rules as the normaliser of a `tokenizer.json` in upstream's form."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from tools.demo_voice.letters import EDGE, LETTERS, PUNCTUATION, Phones, Rule, Shape
from tools.demo_voice.sizes import DIMS

_WAITING = "·"
"""What follows a letter until a rule has read it."""
_SPECIAL = {"[STOP]": 0, "[REFUSED]": 1, "[SPACE]": 2, "[START]": 255}
"""At upstream's ids. What has no token is `[REFUSED]`, upon which the engine refuses the text."""
_WRITTEN = {"[’‘`]": "'", '["“”()]': "", "[–—]": "-", "[;:]": ","}
_KINDS = {"V": "[aeiouy]", "C": "[b-df-hj-np-tv-xz']", EDGE: None}


def symbols(rules: Sequence[Rule]) -> dict[tuple[str, Phones], str]:
    """A character for each letter with its phones."""
    pairs = sorted({(letter, phones) for _, letter, _, phones in rules} | {(letter, ()) for letter in LETTERS})
    return {pair: chr(0xE000 + number) for number, pair in enumerate(pairs)}


def write(rules: Sequence[Rule], table: dict[tuple[str, Phones], str], path: Path) -> None:
    free = iter(number for number in range(DIMS.t3.text_vocab) if number not in _SPECIAL.values())
    vocab = _SPECIAL | {piece: next(free) for piece in [*PUNCTUATION, *table.values()]}
    vocab |= {f"[unused{number}]": number for number in free}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="[REFUSED]"))
    tokenizer.add_special_tokens([name for name in _SPECIAL if name != "[REFUSED]"])
    state = json.loads(tokenizer.to_str())
    state["normalizer"] = {"type": "Sequence", "normalizers": list(_normalisers(rules, table))}
    path.write_text(json.dumps(state, ensure_ascii=False))


def _normalisers(rules: Sequence[Rule], table: dict[tuple[str, Phones], str]) -> Iterator[dict[str, Any]]:
    """The rules from the most specific shape; each letter is removed once a symbol stands after it."""
    yield from ({"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"})
    for pattern, content in _WRITTEN.items():
        yield _replace(content, Regex=pattern)
    for letter in LETTERS:
        yield _replace(letter + _WAITING, String=letter)
    grouped: dict[Shape, dict[tuple[str, Phones], list[str]]] = {}
    for shape, letter, context, phones in rules:
        patterns = grouped.setdefault(shape, collections.defaultdict(list))
        patterns[letter, phones].append(_pattern(letter, shape, context))
    for shape in reversed(grouped):
        for pair, same in grouped[shape].items():
            yield _replace(table[pair], Regex="|".join(same))
    yield _replace("", Regex=f"[a-z'{_WAITING}]")


def _replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _pattern(letter: str, shape: Shape, context: str) -> str:
    """Matches what waits after `letter` in a text in which a symbol, or what waits for one, follows each letter."""
    before, after = letter, ""
    places = sorted(zip(shape, context, strict=True))
    for (_, exact), other in reversed([place for place in places if place[0][0] < 0]):
        slot = other if exact and other != EDGE else _KINDS[other]
        if slot is None:
            before = "\\A" + before
            break
        before = f"{slot}.{before}"
    for (_, exact), other in [place for place in places if place[0][0] > 0]:
        slot = other if exact and other != EDGE else _KINDS[other]
        if slot is None:
            after += "(?![a-z'])"
            break
        after += f"{slot}."
    return f"(?<={before}){_WAITING}" + (after if after == "(?![a-z'])" else f"(?={after})" if after else "")
