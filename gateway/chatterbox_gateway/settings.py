"""The gateway's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from chatterbox_client.client import DEFAULT_TIMEOUT
from chatterbox_gateway.keys import NO_LIMITS, Limits

FIRST_CHUNK_TOKENS = 13
"""Half a second of audio: agent frameworks read 24,000 bytes of PCM before they play."""

TextNormalization = Literal["none", "plain", "spoken"]
Markup = Literal["none", "auto"]
"""Of the server's inputs of these names."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command's options set; it describes them."""

    models: Sequence[str] = ("chatterbox",)
    keys: Sequence[str] = ()
    batch_keys: Sequence[str] = ()
    """Names of the keys whose requests have priority `batch`."""
    limits: Limits = NO_LIMITS
    strict: bool = False
    change_voices: bool = False
    origins: frozenset[str] = frozenset()
    """Other origins whose pages are accepted, in lower case."""
    metrics_urls: Sequence[str] = ("localhost:8002",)
    idle_unload: float = 0.0
    """Seconds without a request after which the models are unloaded; 0: never."""
    control_url: str = "localhost:8000"
    control_headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = DEFAULT_TIMEOUT
    first_chunk_tokens: int = FIRST_CHUNK_TOKENS
    text_normalization: TextNormalization = "plain"
    markup: Markup = "auto"
