"""Text that arrives in pieces, as the sentences that are certain so far."""

from __future__ import annotations

import re

from chatterbox_client.sentence_ends import CLAUSES, CLOSING, STOPS, segment

LONGEST = 300
"""Maximum characters of a sentence, and the server's default for a segment. A longer one ends after a clause, else at a
space, else there."""

_CANDIDATE = re.compile(
    rf"[.!?;\u2026][{CLOSING}]*\s+(?=\S)|[{STOPS}]+[{CLOSING}]*\s*(?=[^\s{CLOSING}{STOPS}])|\n\s*(?=\S)"
)
"""Where a sentence may end. The semicolon is Greek's question mark; `segment` knows the language."""

_WORD = re.compile(r"\w\S{0,11}")
_LIST_MARKER = re.compile(r"(?:^|\n)\s*(?:\d{1,3}|[a-zA-Z])[.)]\s+$")
_NEAR = 16
"""Characters between a possible end and the word after it, at most: quotes, brackets, dashes."""


class Sentences:
    """Collects pieces of a text and gives out its sentences.

        sentences = Sentences("en")
        for piece in pieces:  # words, tokens, lines
            for sentence in sentences.push(piece):
                speak(sentence)
        for sentence in sentences.flush():
            speak(sentence)

    An end is certain when the word after it is known: "3." may go on as "3.5", "p.m." in lower case. So the sentences
    do not depend on where the pieces are cut. Joined, they are the text.
    """

    def __init__(self, language: str = "en", longest: int = LONGEST) -> None:
        self._language = language
        self._longest = longest
        self._text = ""
        self._start = 0  # of the sentence that is collected
        self._at = 0  # where the search for its end continues

    @property
    def waiting(self) -> int:
        """Characters that were pushed and not given out."""
        return len(self._text)

    @property
    def ends_with_stop(self) -> bool:
        """Whether the last character that waits may end a sentence."""
        return self._text.endswith((".", "!", "?", "\u2026"))

    def push(self, piece: str) -> list[str]:
        """The sentences that a further piece of text completes."""
        self._text += piece
        return self._take(certain=True)

    def settle(self) -> list[str]:
        """All that was pushed, if a sentence ends there even before a name; for pieces that are whole sentences."""
        text = self._text.rstrip()
        ended = Sentences(self._language, self._longest).push(f"{text} Xavier ")
        return self.flush() if text and sum(map(len, ended)) >= len(text) else []

    def flush(self) -> list[str]:
        """All that was pushed, as if the text ended here. Blank text waits for more."""
        sentences = self._take(certain=False)
        if self._text.strip():
            sentences.append(self._text)
            self._text, self._at = "", 0
        return sentences

    def _take(self, *, certain: bool) -> list[str]:
        sentences = []
        while (end := self._end(certain)) is not None:
            sentences.append(self._text[self._start : end])
            self._start = self._at = end
        self._text = self._text[self._start :]
        self._at -= self._start
        self._start = 0
        return sentences

    def _end(self, certain: bool) -> int | None:
        """Where the sentence ends; None if that is not known yet."""
        limit = self._start + self._longest
        while (found := _CANDIDATE.search(self._text, self._at)) is not None and found.end() <= limit:
            word = self._word_at(found.end(), certain)
            if word is None:
                return None
            if self._ends_at(found.end(), word):
                return found.end()
            self._at = found.end()
        if len(self._text.rstrip()) <= limit:
            return None
        return self._start + _cut(self._text[self._start : limit])

    def _word_at(self, place: int, certain: bool) -> str | None:
        """The word after a possible end, or what is known of it at the end of the text; None if it may go on."""
        found = _WORD.search(self._text, place, place + _NEAR)
        complete = place + _NEAR if found is None else found.end()
        if certain and complete >= len(self._text) and (found is None or len(found[0]) < 12):
            return None
        return found[0] if found else self._text[place : place + 1]

    def _ends_at(self, end: int, word: str) -> bool:
        sentence = self._text[self._start : end]
        if not any(char.isalpha() for char in sentence) or _LIST_MARKER.search(sentence):
            return False
        ends, length = set(), 0
        for part in segment(sentence + word, self._language):
            length += len(part)
            ends.add(length)
        return len(sentence) in ends


def _cut(text: str) -> int:
    """Where a sentence that is too long is split."""
    clauses = [found.start() for found in CLAUSES.finditer(text) if found.start()]
    if clauses:
        return clauses[-1]
    return text.rfind(" ") + 1 or len(text)
