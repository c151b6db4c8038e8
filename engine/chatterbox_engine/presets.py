"""Named sets of sampling parameters: presets of other servers, and moods.

A request's own parameters override its preset. For more expression, upstream's README raises `exaggeration` and lowers
`cfg_weight` to compensate for the faster speech that this causes. The moods are points along that line, not measured
emotions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chatterbox_engine.checkpoint.families import Family
from chatterbox_engine.errors import InvalidRequest, quote
from chatterbox_engine.types import SamplingParams

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "upstream": {},  # the family's own defaults
    "fast": {"exaggeration": 0.35, "cfg_weight": 0.3, "temperature": 0.7},  # of the well-known streaming servers
    "neutral": {"exaggeration": 0.5, "cfg_weight": 0.5, "temperature": 0.8},
    "calm": {"exaggeration": 0.3, "cfg_weight": 0.6, "temperature": 0.6},
    "sad": {"exaggeration": 0.35, "cfg_weight": 0.6, "temperature": 0.7},
    "happy": {"exaggeration": 0.7, "cfg_weight": 0.4, "temperature": 0.8},
    "excited": {"exaggeration": 1.0, "cfg_weight": 0.3, "temperature": 0.9},
    "angry": {"exaggeration": 1.1, "cfg_weight": 0.35, "temperature": 0.8},
    "dramatic": {"exaggeration": 0.8, "cfg_weight": 0.3, "temperature": 0.8},
}


def sampling(family: Family, preset: str) -> SamplingParams:
    """The defaults of a family under a preset.

    Raises InvalidRequest for a preset that does not exist, or that sets a parameter which the family does not support.
    """
    if preset not in PRESETS:
        raise InvalidRequest(f"preset is {quote(preset)}; it must be one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    if idle := [name for name in chosen if name not in family.inputs]:
        raise InvalidRequest(f"preset {preset!r} sets {', '.join(idle)}, which {family.title} does not support")
    return replace(family.sampling, **chosen)
