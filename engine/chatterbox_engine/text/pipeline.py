"""From a request's text to the segments that are tokenised: clean, markup, normalise, split.

Every stage is a function of passages, on or off by request. Characters lead back to the source from end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.text.clean import clean, visible
from chatterbox_engine.text.lexicon_file import LexiconFile
from chatterbox_engine.text.passages import Passage, Passages, Text
from chatterbox_engine.text.sentence_ends import pause_after
from chatterbox_engine.text.split import split
from chatterbox_engine.types import SynthesisRequest

LONGEST_SILENCE = 300.0
"""Seconds of all pauses of a request together that its markup asks for."""


@dataclass(frozen=True)
class Segment:
    """A part of a request that is spoken by one run of T3."""

    text: Text
    language: str
    pause: float
    """Seconds of silence after it."""
    ends_passage: bool
    """Its pause was asked for, and stays when there is nothing to speak in it."""
    rate: float
    """How many times as fast as usual it is to be played."""


@dataclass(frozen=True)
class Script:
    """What is spoken of a request's text."""

    segments: Sequence[Segment]
    lead: float
    """Seconds of silence before the first segment."""
    notes: Sequence[str]
    """What was left out and why."""
    stages: Sequence[tuple[str, Sequence[Passage]]]
    """The name of each stage that is on, and its passages."""


@dataclass(frozen=True)
class Reader:
    """Reads texts for one model."""

    languages: Collection[str]
    sounds: Collection[str]
    """Names of the tags that the model speaks."""
    model: str
    """What messages call it."""
    max_chars: int
    """Characters of a segment."""
    lexicons: LexiconFile = field(default_factory=LexiconFile)

    def read(self, request: SynthesisRequest) -> Script:
        """The request's script, of at least one segment. Raises InvalidRequest."""
        source = Text.of(request.text)
        normalised = request.text_normalization != "none"
        cleaned = clean(source, request.language) if normalised else visible(source)
        found = Passages(passages=[Passage(cleaned, request.language)])
        stages = [("clean", found.passages)]
        marked_up = False
        if request.markup != "none":
            found, marked_up = self._markup(cleaned, request)
            stages.append(("markup", found.passages))
            if found.asked > LONGEST_SILENCE:
                raise InvalidRequest(f"the pauses of the text add up to more than {LONGEST_SILENCE:g} s")
        if normalised:
            found = _plain(found, marked_up=marked_up)
            stages.append(("plain", found.passages))
        lexicon = self.lexicons.of(None if request.reference_audio else request.voice, request.lexicon)
        if lexicon.entries:
            found = _each(found, lambda passage: lexicon.pronounced(passage.text))
            stages.append(("lexicon", found.passages))
        if request.text_normalization == "spoken":
            found = _spoken(found)
            stages.append(("spoken", found.passages))
        if not found.passages:
            raise InvalidRequest("text has nothing to speak: what is left of it holds no letter and no digit")
        segments = list(self._split(found.passages))
        return Script(segments, found.lead, tuple(dict.fromkeys(found.notes)), stages)

    def _markup(self, text: Text, request: SynthesisRequest) -> tuple[Passages, bool]:
        """The passages that markup makes, and whether it was SSML."""
        from chatterbox_engine.text import ssml, tags
        from chatterbox_engine.text.say_as import say_as

        rates = request.markup == "auto_rate"
        if ssml.is_ssml(text.string):
            return ssml.parse(text, request.language, self.languages, say_as, request.text, rates=rates), True
        return tags.parse(text, request.language, self.sounds, self.model, request.text), False

    def _split(self, passages: Sequence[Passage]) -> Sequence[Segment]:
        segments = []
        for number, passage in enumerate(passages, 1):
            parts = split(passage.text, passage.language, self.max_chars)
            for part in parts:
                segments.append(Segment(part.text, passage.language, part.pause, ends_passage=False, rate=passage.rate))
            last = segments[-1]
            pause = passage.pause
            if pause is None:
                pause = pause_after(last.text.string) if number < len(passages) else 0.0
            segments[-1] = replace(last, pause=pause, ends_passage=True)
        return segments


def _plain(given: Passages, *, marked_up: bool) -> Passages:
    from chatterbox_engine.text.plain import plain

    found = Passages(given.lead, notes=list(given.notes))
    for passage in given.passages:
        passages, notes = plain(passage, marked_up=marked_up)
        found.notes += notes
        for shown in passages:
            found.add(shown)
    return found


def _spoken(given: Passages) -> Passages:
    from chatterbox_engine.text.spoken import spoken

    return _each(given, lambda passage: spoken(passage.text, passage.language))


def _each(given: Passages, change: Callable[[Passage], Text]) -> Passages:
    """The passages with other words."""
    return Passages(given.lead, [replace(passage, text=change(passage)) for passage in given.passages], given.notes)
