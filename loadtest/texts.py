"""What the simulated users say: prompts, sentences and paragraphs, as voice assistants and readers send them."""

from __future__ import annotations

import random
from dataclasses import dataclass

PROMPTS = (
    "Hello!",
    "One moment, please.",
    "Turn left in two hundred metres.",
    "Your timer is done.",
    "Sorry, could you say that again?",
    "The meeting starts in five minutes.",
)

SENTENCES = (
    "I have moved your appointment with the dentist from Tuesday to Thursday at half past three.",
    "The train to the coast leaves from platform nine, and it will be about twelve minutes late today.",
    "If you mix the flour with the butter first, the dough will be easier to roll out later on.",
    "Expect light rain in the morning, then sunshine, with temperatures of up to 21 degrees.",
    "Your parcel was handed to a neighbour because nobody was at home when our driver called.",
)

PARAGRAPHS = (
    "The lighthouse had not been lit for eleven years when the keeper's daughter came back to the island. She found "
    "the door unlocked and the stairs dry. Nothing had been taken. Even the logbook lay where her father had left it, "
    "open at a page on which he had written only the date and the direction of the wind. She read it twice. "
    "Then she wound the clock, and the whole tower seemed to breathe again.",
    "Thank you for calling. All of our advisers are helping other customers at the moment, and your place in the queue "
    "is number four. You can hold the line, or press one and we will ring you back. If your question is about a bill, "
    "you will find the answer on our website, together with a short film that explains each line. We are sorry for the "
    "wait, and we will be with you as soon as we can.",
)

KINDS = {"prompt": (PROMPTS, 5), "sentence": (SENTENCES, 4), "paragraph": (PARAGRAPHS, 1)}
"""Texts of each kind, and how often the kind is said compared with the others."""


@dataclass(frozen=True)
class Line:
    """One thing to say."""

    kind: str
    text: str
    voice: str
    seed: int


def choose(source: random.Random, voices: list[str]) -> Line:
    """A line at random: kinds by their weight, texts and voices evenly."""
    kind = source.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    return Line(kind, source.choice(KINDS[kind][0]), source.choice(voices), source.getrandbits(31))
