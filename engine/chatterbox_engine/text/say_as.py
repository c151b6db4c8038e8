"""What SSML's `say-as` asks for, in words."""

from __future__ import annotations

_LETTERS = ("characters", "spell-out", "verbatim", "digits", "telephone")


def say_as(text: str, way: str, form: str, language: str) -> str | None:  # noqa: ARG001
    """A text as it is to be read; None where the way is unknown or the text is nothing of the kind."""
    if way in _LETTERS:
        return " ".join(char for char in text if char.isalnum())
    return None
