"""Word times and the guard on the demo voice, whose speech tokens tell what is said and when.

    python -m tools.demo_voice.measure_guard times CHECKPOINT [--count 100]
    python -m tools.demo_voice.measure_guard guard CHECKPOINT [--sets sentences,short] [--guards off,stop,retry]
        [--count 300] [--first 0] [--temperature 1.2] [--recogniser] [--save FILE]
    python -m tools.demo_voice.measure_guard clean CHECKPOINT [--count 500] [--first 0]
    python -m tools.demo_voice.measure_guard report FILE...

`times`: errors of word starts, unary and streamed. `guard`: wrong phones, and wrong words by these, of sentences and
of short texts with each guard, how long the answers are, and what it costs; with `--recogniser` its word error
rate too. A run of some minutes does a part (`--first`, `--count`, `--sets`) and appends its answers to `--save`;
`report` shows what such files have together. `clean`: what `stop` cuts of sentences at the temperature that requests
have by default.

The vocoder makes one Euler step where nobody listens. Needs `tools/demo_voice/requirements.txt`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chatterbox_engine.synthesis.guard import BASE_SECONDS, CHARACTERS_PER_SECOND, TOO_LONG
from chatterbox_engine.types import SAMPLE_RATE, SynthesisResult
from tools.demo_voice.held_out import SENTENCES
from tools.demo_voice.lines import PAGE
from tools.demo_voice.recogniser import Recogniser, distance, normal
from tools.demo_voice.said import phone_errors, phones, word_starts, wrong_words
from tools.demo_voice.voice import Voice

GUARDS = ("off", "stop", "retry")
SETS = ("sentences", "short")
TOGETHER = 96
"""Requests that are submitted together: the engine speaks sixteen of them at a time."""

RATES = {"phones": "wrong phones", "words": "wrong words", "heard_words": "word error rate of the recogniser"}
"""What is counted, and what its errors are called."""

Row = dict[str, Any]
"""What became of a text: counts of errors, seconds, and what the guard did."""


def times(voice: Voice, count: int) -> None:
    """Errors of word starts."""
    texts = [(text, words) for text in SENTENCES[:count] if (words := voice.words(text))]
    requests = [voice.request(text, 1, word_times=True) for text, _ in texts]
    errors: list[float] = []
    same = 0
    for (text, words), asked, result in zip(texts, requests, voice.speak(requests), strict=True):
        true = word_starts(result.speech_tokens.tolist(), words)
        assert len(result.words) == len(words), text
        errors += [word.start - true[number] for number, word in enumerate(result.words) if number in true]
        same += voice.stream(asked) == list(result.words)
    size = np.abs(errors)
    print(f"{len(texts)} sentences, {len(errors)} words: word starts, absolute error: median {np.median(size):.3f} s,")
    print(f"95 % below {np.percentile(size, 95):.3f} s, mean of the error {np.mean(errors):+.3f} s;")
    print(f"streams with the words of the whole answer: {same} of {len(texts)}")


def sentences(voice: Voice) -> Iterator[tuple[str, int]]:
    """The held-out sentences with seed 1, then with seed 2, and so on."""
    kept = [text for text in SENTENCES if voice.words(text)]
    for number in range(1_000_000):
        yield kept[number % len(kept)], 1 + number // len(kept)


def short_texts(voice: Voice) -> Iterator[tuple[str, int]]:
    """Texts of one to three words, no two the same."""
    words = re.findall(r"[A-Za-z']+", " ".join((*SENTENCES, re.sub(r"\s+", " ", PAGE))))
    generator, found = random.Random(5), set[str]()
    while True:
        first = generator.randrange(len(words) - 3)
        text = " ".join(words[first : first + 1 + len(found) % 3])
        text = text[0].upper() + text[1:] + "."
        if text not in found and voice.words(text):
            found.add(text)
            yield text, 1


def part(texts: Iterator[tuple[str, int]], first: int, count: int) -> list[tuple[str, int]]:
    """Some of the texts."""
    return [text for _, text in zip(range(first + count), texts, strict=False)][first:]


def guard(voice: Voice, arguments: argparse.Namespace) -> list[Row]:
    """What becomes of texts with each guard."""
    recogniser = Recogniser() if arguments.recogniser else None
    sets, rows = {"sentences": sentences, "short": short_texts}, list[Row]()
    for name in arguments.sets.split(","):
        texts = part(sets[name](voice), arguments.first, arguments.count or 300)
        for mode in arguments.guards.split(","):
            requests = [voice.request(text, seed, arguments.temperature, guard=mode) for text, seed in texts]
            for at in range(0, len(requests), TOGETHER):
                began = time.monotonic()
                results = voice.speak(requests[at : at + TOGETHER])
                seconds = (time.monotonic() - began) / len(results)
                for (text, seed), result in zip(texts[at:], results, strict=False):
                    about = {"set": name, "guard": mode, "temperature": arguments.temperature, "seed": seed}
                    rows.append({**about, **judged(voice, text, result, recogniser), "wall": seconds})
                    if arguments.save is not None:
                        with arguments.save.open("a") as file:
                            print(json.dumps(rows[-1]), file=file)
    return rows


def judged(voice: Voice, text: str, result: SynthesisResult, recogniser: Recogniser | None) -> Row:
    """The errors of an answer, its length, and what the guard did."""
    words = voice.words(text)
    assert words is not None, "only such texts are spoken"
    wanted = [phone for word in words for phone in word]
    said, stats = phones(result.speech_tokens.tolist()), result.stats
    row: Row = {
        "text": text,
        "phones": len(wanted),
        "wrong_phones": phone_errors(said, wanted),
        "words": len(words),
        "wrong_words": wrong_words(said, words),
        "seconds": stats["audio_seconds"],
        "expected": BASE_SECONDS + sum(map(str.isalnum, text)) / CHARACTERS_PER_SECOND,
        "retries": stats.get("retries", 0),
        "trimmed": stats.get("trimmed_seconds", 0.0),
        "events": stats.get("guard_events", []),
    }
    if recogniser is not None:
        heard = recogniser.words(result.samples, SAMPLE_RATE)
        row |= {"heard_words": len(normal(text)), "wrong_heard_words": distance(normal(text), heard)}
    return row


def report(rows: Sequence[Row]) -> None:
    """Totals of each set and guard, and in brackets what they are of the first guard's."""
    for name in sorted({row["set"] for row in rows}):
        base: dict[str, float] = {}
        for mode in (mode for mode in GUARDS if any(row["guard"] == mode for row in rows if row["set"] == name)):
            own = [row for row in rows if (row["set"], row["guard"]) == (name, mode)]
            rates = {what: value for what in RATES if (value := rate(own, what)) is not None}
            base = base or rates
            errors = [
                f"{RATES[what]} {value:.3f}" + (f" ({value / base[what]:.2f})" if base[what] else "")
                for what, value in rates.items()
            ]
            lengths = [row["seconds"] / row["expected"] for row in own]
            again = [row["retries"] for row in own]
            events = Counter[str](event for row in own for event in row["events"])
            print(
                f"{name}, {mode}: {len(own)} answers; {', '.join(errors)}; longer than twice expected "
                f"{sum(length > TOO_LONG for length in lengths)}, the longest {max(lengths):.1f} times; spoken again "
                f"{sum(again)} times in {sum(map(bool, again))} answers; {sum(row['wall'] for row in own):.0f} s; "
                f"found: {shown(events)}",
                flush=True,
            )


def rate(rows: Iterable[Row], what: str) -> float | None:
    """Errors per wanted one, of the rows that tell it."""
    counted = [row for row in rows if what in row]
    return sum(row[f"wrong_{what}"] for row in counted) / sum(row[what] for row in counted) if counted else None


def clean(voice: Voice, first: int, count: int) -> None:
    """What `stop` cuts, and what it finds: of a poor score only how often."""
    texts = part(sentences(voice), first, count)
    cut, events = 0, Counter[str]()
    for at in range(0, len(texts), TOGETHER):
        some = texts[at : at + TOGETHER]
        results = voice.speak([voice.request(text, seed, guard="stop") for text, seed in some])
        for (text, seed), result in zip(some, results, strict=True):
            found, trimmed = result.stats["guard_events"], result.stats["trimmed_seconds"]
            cut += trimmed > 0
            events.update(found)
            if trimmed or found not in ([], ["score"]):
                row = judged(voice, text, result, None)
                wrong = f"{row['wrong_phones']} of {row['phones']} phones wrong"
                print(f"  seed {seed}: {', '.join(found)}; {trimmed} s cut; {wrong}: {text}", flush=True)
    print(f"{len(texts)} sentences: {cut} were cut; found: {shown(events)}")


def shown(events: Counter[str]) -> str:
    """What was found, and how often."""
    return ", ".join(f"{event} {times}" for event, times in sorted(events.items())) or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("times", "guard", "clean", "report"))
    parser.add_argument("paths", nargs="+", help="the checkpoint, or the files of a report")
    parser.add_argument("--count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.2)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--guards", default=",".join(GUARDS))
    parser.add_argument("--recogniser", action="store_true")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "report":
        report([json.loads(line) for path in arguments.paths for line in Path(path).read_text().splitlines()])
        return
    voice = Voice(arguments.paths[0], listened=arguments.recogniser)
    if arguments.what == "times":
        times(voice, arguments.count or len(SENTENCES))
    elif arguments.what == "clean":
        clean(voice, arguments.first, arguments.count or 500)
    else:
        report(guard(voice, arguments))
    voice.engine.close()


if __name__ == "__main__":
    main()
