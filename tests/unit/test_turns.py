"""A turn's sentences in their order, at most two at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import numpy as np

from chatterbox_client import Chunk, InvalidRequest, ServerError
from chatterbox_client.turns import Turn


class Speech:
    """Speaks each sentence as two chunks; with an error for some."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.begun: list[str] = []
        self.closed: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def speak(self, sentence: str) -> AsyncGenerator[Chunk, None]:
        self.begun.append(sentence)
        try:
            for index in range(2):
                await self.gate.wait()
                if sentence in self.errors:
                    raise self.errors[sentence]
                yield Chunk(np.zeros(24, np.float32), 24_000, np.zeros(1, np.int32), index, index == 1, {})
        finally:
            self.closed.append(sentence)


async def spoken(turn: Turn) -> list[tuple[str, int, float]]:
    async with contextlib.aclosing(turn.spoken()) as parts:
        return [(part.sentence, part.number, part.silence) async for part in parts]


async def spoken_before(error: type[Exception], turn: Turn) -> list[tuple[str, int, float]]:
    """What is spoken before this error."""
    heard = []
    try:
        async for part in turn.spoken():
            heard.append((part.sentence, part.number, part.silence))
    except error:
        return heard
    raise AssertionError(f"no {error.__name__}")


def test_sentences_are_spoken_in_order_with_the_pauses_between_them() -> None:
    async def main() -> None:
        turn = Turn(Speech().speak)
        for sentence in ("One. ", "Two, ", "Three.\n\n", "Four"):
            turn.say(sentence)
        turn.end()
        assert (await spoken(turn))[::2] == [
            ("One. ", 0, 0.0),
            ("Two, ", 1, 0.3),
            ("Three.\n\n", 2, 0.15),
            ("Four", 3, 0.6),
        ]

    asyncio.run(main())


def test_two_sentences_are_decoded_at_once_and_closing_cancels_them() -> None:
    async def main() -> None:
        speech = Speech()
        speech.gate.clear()
        turn = Turn(speech.speak)
        for sentence in ("One.", "Two.", "Three."):
            turn.say(sentence)
        hearing = asyncio.create_task(spoken(turn))
        await asyncio.sleep(0.01)
        assert (speech.begun, turn.waiting) == (["One.", "Two."], 14)
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        assert (speech.closed, turn.waiting) == (["One.", "Two."], 0)

    asyncio.run(main())


def test_a_sentence_with_nothing_to_speak_is_skipped_and_other_errors_are_raised() -> None:
    async def main() -> None:
        nothing = InvalidRequest("text has nothing to speak: it holds no letter and no digit")
        turn = Turn(Speech(**{"...": nothing, "Bad.": ServerError("broken")}).speak)
        for sentence in ("...", "One.", "...", "Two.", "Bad."):
            turn.say(sentence)
        heard = await spoken_before(ServerError, turn)
        assert heard == [("One.", 0, 0.0), ("One.", 0, 0.0), ("Two.", 1, 0.3), ("Two.", 1, 0.0)]

    asyncio.run(main())


def test_an_error_of_the_text_is_raised_after_what_was_said() -> None:
    async def main() -> None:
        turn = Turn(Speech().speak)
        turn.say("One.")
        turn.end(OSError("the pipe broke"))
        assert [sentence for sentence, _, _ in await spoken_before(OSError, turn)] == ["One.", "One."]

    asyncio.run(main())
