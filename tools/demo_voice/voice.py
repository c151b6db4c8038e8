"""An engine that speaks with the demo voice, many texts together, and how hibari pronounces them."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from chatterbox_engine import assemble
from chatterbox_engine.config import Config
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.types import SpokenWord, SynthesisChunk, SynthesisRequest, SynthesisResult
from tools.demo_voice.said import expected


class Voice:
    """An engine, and how hibari pronounces."""

    def __init__(self, checkpoint: str, *, listened: bool) -> None:
        """listened: somebody listens to the audio; otherwise it is made as fast as can be."""
        from hibari import Hibari

        self._hibari = Hibari()
        config = Config(checkpoint=checkpoint, watermark=False, dtype="float32")
        self.engine = assemble.build(config if listened else replace(config, cfm_steps=1, prompt_seconds=1.0))
        self.engine.start()

    def words(self, text: str) -> list[list[str]] | None:
        """The phones of each word; None where hibari does not see one group for each."""
        said = self._hibari.phonemize(text)
        if len(said) != 1 or len(said[0].split(" ")) != len(text.split(" ")):
            return None
        return expected(said[0])

    def request(self, text: str, seed: int, temperature: float | None = None, **changes: Any) -> SynthesisRequest:
        """A request for a text; temperature: None takes the family's."""
        sampling = self.engine.family.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        return SynthesisRequest(text=text, seed=seed, sampling=sampling, **changes)

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
