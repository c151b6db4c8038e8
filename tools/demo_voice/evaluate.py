"""What a recogniser makes of a checkpoint.

    python -m tools.demo_voice.evaluate CHECKPOINT [--count 100] [--seeds 1,2,3] [--sets sentences,lines,page]

`sentences`: ordinary ones that are in no training text, together and apart by whether one of their words is in none.
`lines`: what the demo and the documents say. `page`: 3,000 characters of prose. Each with every seed, at the
temperature that requests have by default. Then the real-time factor of one utterance at a time.
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from chatterbox_engine import assemble
from chatterbox_engine.config import Config
from chatterbox_engine.types import SAMPLE_RATE, SynthesisRequest, SynthesisResult
from tools.demo_voice.held_out import SENTENCES, UNSEEN
from tools.demo_voice.lines import LINES, PAGE
from tools.demo_voice.recogniser import Recogniser, distance, error_rate, known, normal


class Listener:
    """Speaks texts with an engine of its own, one at a time, and has them recognised."""

    def __init__(self, checkpoint: Path, save: Path | None) -> None:
        config = Config(checkpoint=str(checkpoint), watermark=False, dtype="float32")
        self._engine = assemble.build(config, report=lambda _line: None)
        self._engine.start()
        self._recogniser, self._save = Recogniser(), save
        self.wall = self.audio = 0.0

    def speak(self, text: str, seed: int) -> np.ndarray:
        answers: queue.SimpleQueue[object] = queue.SimpleQueue()
        began = time.monotonic()
        request = SynthesisRequest(text=text, seed=seed, sampling=self._engine.family.sampling)
        self._engine.submit(request, answers.put)
        result = answers.get(timeout=900)
        assert isinstance(result, SynthesisResult), result
        self.wall += time.monotonic() - began
        self.audio += len(result.samples) / SAMPLE_RATE
        samples: np.ndarray = result.samples
        return samples

    def heard(self, name: str, texts: Iterable[str], seed: int) -> list[list[str]]:
        found = []
        for number, text in enumerate(texts):
            samples = self.speak(text, seed)
            found.append(self._recogniser.words(samples, SAMPLE_RATE))
            if distance(normal(text), found[-1]):
                print(
                    f"  {name}, seed {seed}, {len(samples) / SAMPLE_RATE:.1f} s: {text} | {' '.join(found[-1])}",
                    flush=True,
                )
            if self._save:
                soundfile.write(self._save / f"{name}-{seed}-{number:02}.wav", samples, SAMPLE_RATE)
        return found

    def close(self) -> None:
        self._engine.close()


def is_unseen(text: str) -> bool:
    return any(word.startswith(tuple(UNSEEN)) for word in normal(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=len(SENTENCES))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--sets", default="sentences,lines,page")
    parser.add_argument("--save", type=Path, help="a folder for the audio")
    arguments = parser.parse_args()
    listener = Listener(arguments.checkpoint, arguments.save)
    listener.speak("Hello.", 0)  # warms up
    listener.wall = listener.audio = 0.0
    # unseen ones first: half of any count
    texts = [text for pair in zip(SENTENCES, SENTENCES[::-1], strict=True) for text in pair][: arguments.count]
    sets = {"sentences": texts, "lines": list(LINES), "page": [re.sub(r"\s+", " ", PAGE).strip()]}
    sets = {name: sets[name] for name in arguments.sets.split(",")}
    assert known([text for texts in sets.values() for text in texts])
    rates: dict[str, list[float]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        for name, part in sets.items():
            heard = listener.heard(name, part, seed)
            rates.setdefault(name, []).append(error_rate(part, heard))
            if name == "sentences":
                for kind in (True, False):
                    picked = [(text, words) for text, words in zip(part, heard, strict=True) if is_unseen(text) == kind]
                    label = "with an unseen word" if kind else "of seen words"
                    rates.setdefault(label, []).append(error_rate(*map(list, zip(*picked, strict=True))))
    listener.close()
    for name, each in rates.items():
        print(f"{name}: word error rate {np.mean(each):.3f}, of each seed {', '.join(f'{rate:.3f}' for rate in each)}")
    print(f"real-time factor {listener.wall / listener.audio:.3f}, {listener.audio:.0f} s of audio")
    print(json.dumps({name: float(np.mean(each)) for name, each in rates.items()}))


if __name__ == "__main__":
    main()
