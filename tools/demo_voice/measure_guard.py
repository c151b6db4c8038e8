"""Word times and the guard on the demo voice, whose speech tokens tell what is said and when.

    python -m tools.demo_voice.measure_guard times CHECKPOINT [--count 100]
    python -m tools.demo_voice.measure_guard guard CHECKPOINT [--count 300] [--temperature 1.2]

`times`: errors of word starts, unary and streamed. `guard`: phone error rates of sentences and of short texts, with
each guard, how long the answers are, and what it costs. The vocoder makes one Euler step, as nobody listens. Needs
`tools/demo_voice/requirements.txt`.
"""

from __future__ import annotations

import argparse
import queue
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chatterbox_engine import assemble
from chatterbox_engine.config import Config
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.synthesis.guard import BASE_SECONDS, CHARACTERS_PER_SECOND, TOO_LONG
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.types import SpokenWord, SynthesisChunk, SynthesisRequest, SynthesisResult
from tools.demo_voice.held_out import SENTENCES
from tools.demo_voice.lines import PAGE
from tools.demo_voice.said import error_rate, expected, phones, word_starts

GUARDS = ("off", "stop", "retry")


class Voice:
    """An engine, and how hibari pronounces."""

    def __init__(self, checkpoint: str) -> None:
        from hibari import Hibari

        self._hibari = Hibari()
        config = Config(checkpoint=checkpoint, watermark=False, dtype="float32", cfm_steps=1, prompt_seconds=1.0)
        self.engine = assemble.build(config)
        self.engine.start()

    def words(self, text: str) -> list[list[str]] | None:
        """The phones of each word; None where hibari does not see one group for each."""
        said = self._hibari.phonemize(text)
        if len(said) != 1 or len(said[0].split(" ")) != len(text.split(" ")):
            return None
        return expected(said[0])

    def speak(self, requests: Sequence[SynthesisRequest]) -> list[SynthesisResult]:
        """All of them together, in their order."""
        answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        for number, request in enumerate(requests):
            self.engine.submit(request, _numbered(answers, number))
        found = dict(answers.get(timeout=3600) for _ in requests)
        return [_checked(found[number], SynthesisResult) for number in range(len(requests))]

    def stream(self, request: SynthesisRequest) -> list[SpokenWord]:
        """The words of a stream."""
        chunks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.engine.stream(request, ChunkPolicy(), chunks.put)
        words: list[SpokenWord] = []
        while True:
            chunk = _checked(chunks.get(timeout=3600), SynthesisChunk)
            words += chunk.words
            if chunk.last:
                return words


def _numbered(answers: queue.SimpleQueue[tuple[int, Any]], number: int) -> Callable[[Any], None]:
    return lambda answer: answers.put((number, answer))


def _checked(answer: Any, kind: Any) -> Any:
    assert isinstance(answer, kind), answer
    return answer


def request(engine: Engine, text: str, seed: int, temperature: float | None = None, **changes: Any) -> SynthesisRequest:
    sampling = engine.family.sampling
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    return SynthesisRequest(text=text, seed=seed, sampling=sampling, **changes)


def times(voice: Voice, count: int) -> None:
    """Errors of word starts."""
    texts = [(text, words) for text in SENTENCES[:count] if (words := voice.words(text))]
    requests = [request(voice.engine, text, 1, word_times=True) for text, _ in texts]
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


def short_texts(count: int) -> list[str]:
    """Texts of one to three words."""
    words = re.findall(r"[A-Za-z']+", " ".join((*SENTENCES, re.sub(r"\s+", " ", PAGE))))
    generator, found = random.Random(5), dict[str, None]()
    while len(found) < count:
        first = generator.randrange(len(words) - 3)
        text = " ".join(words[first : first + 1 + len(found) % 3])
        found[text[0].upper() + text[1:] + "."] = None
    return list(found)


def guard(voice: Voice, count: int, temperature: float) -> None:
    """Phone error rates with each guard."""
    repeated = [(text, seed) for seed in range(1, 2 + count // len(SENTENCES)) for text in SENTENCES][:count]
    sets = {"sentences": repeated, "short texts": [(text, 1) for text in short_texts(count)]}
    for name, texts in sets.items():
        kept = [(text, seed, words) for text, seed in texts if (words := voice.words(text))]
        for mode in GUARDS:
            began = time.monotonic()
            requests = [request(voice.engine, text, seed, temperature, guard=mode) for text, seed, _ in kept]
            results: list[SynthesisResult] = []
            for first in range(0, len(requests), 100):
                results += voice.speak(requests[first : first + 100])
            report(f"{name}, {mode}", kept, results, time.monotonic() - began)


def report(
    name: str,
    kept: Sequence[tuple[str, int, list[list[str]]]],
    results: Sequence[SynthesisResult],
    seconds: float,
) -> None:
    said = [phones(result.speech_tokens.tolist()) for result in results]
    wanted = [[phone for word in words for phone in word] for _, _, words in kept]
    usual = [BASE_SECONDS + sum(map(str.isalnum, text)) / CHARACTERS_PER_SECOND for text, _, _ in kept]
    longest = max(result.stats["audio_seconds"] / one for result, one in zip(results, usual, strict=True))
    long = sum(result.stats["audio_seconds"] > TOO_LONG * one for result, one in zip(results, usual, strict=True))
    retries = [result.stats.get("retries", 0) for result in results]
    events = [event for result in results for event in result.stats.get("guard_events", [])]
    found = ", ".join(f"{event} {events.count(event)}" for event in sorted(set(events))) or "nothing"
    print(
        f"{name}: {len(results)} answers, phone error rate {error_rate(said, wanted):.3f}; {long} longer than twice "
        f"expected, the longest {longest:.1f} times; retries {sum(retries)}, of {sum(map(bool, retries))} answers; "
        f"{seconds:.0f} s; found: {found}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("times", "guard"))
    parser.add_argument("checkpoint")
    parser.add_argument("--count", type=int)
    parser.add_argument("--temperature", type=float, default=1.2)
    arguments = parser.parse_args()
    voice = Voice(arguments.checkpoint)
    if arguments.what == "times":
        times(voice, arguments.count or len(SENTENCES))
    else:
        guard(voice, arguments.count or 300, arguments.temperature)
    voice.engine.close()


if __name__ == "__main__":
    main()
