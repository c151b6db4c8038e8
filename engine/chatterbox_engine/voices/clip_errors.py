"""How a reference clip is refused, by whichever library reads it."""

from __future__ import annotations

from chatterbox_engine.errors import InvalidRequest

FORMATS = ("WAV", "FLAC", "OGG", "MP3", "M4A", "WebM", "AIFF", "CAF", "AMR")


def unreadable(reason: str | None) -> InvalidRequest:
    """The refusal of what cannot be decoded."""
    return wrong(f"is damaged, truncated or not a {', '.join(FORMATS)} file ({reason})")


def wrong(what: str) -> InvalidRequest:
    """The refusal of a clip."""
    return InvalidRequest(f"the reference audio {what}")
