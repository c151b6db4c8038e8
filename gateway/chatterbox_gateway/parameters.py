"""The fields of a request that all dialects share: the server's own inputs by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from chatterbox_gateway.output import RATES, SPEEDS

_SHOWN, _LONGEST = 8, 40
"""Maximum number of ignored fields in a header, and of characters of each name."""

Speed = Annotated[float, Field(ge=SPEEDS[0], le=SPEEDS[1], description="Of the speech, at the same pitch.")]
SampleRate = Annotated[int, Field(ge=RATES[0], le=RATES[1], description="Samples per second of the answer.")]


class Body(BaseModel):
    """A request's fields. A null field counts as missing; unknown ones are kept aside, so that they can be named."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

    def ignored(self) -> list[str]:
        """Names of the fields that change nothing."""
        return sorted(self.__pydantic_extra__ or {})


class Sampling(Body):
    """The model's own parameters. The server checks their ranges and refuses those that its model does not support."""

    language: str | None = Field(None, description="Of a multilingual model.")
    text_normalization: str | None = Field(None, description="`none`, `plain` or `spoken`.")
    markup: str | None = Field(None, description="`none` or `auto`: SSML, and tags like [pause 0.5s].")
    lexicon: dict[str, str] | None = Field(None, description="What to say for a word.")
    exaggeration: float | None = Field(None, description="Strength of expression, 0 to 2.")
    cfg_weight: float | None = Field(None, description="Classifier-free guidance, 0 to 3.")
    temperature: float | None = Field(None, description="0 (greedy) to 5.")
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    top_k: int | None = Field(None, description="Of Turbo and Nano.")
    num_steps: int | None = Field(None, description="Of Flash: passes of a block at most, 1 to 32.")
    time_shift_tau: float | None = Field(None, description="Of Flash: the higher, the more tokens are kept early.")
    omnivoice_schedule_t_shift: float | None = Field(None, description="Of Flash: how tokens are spread over passes.")
    position_temperature: float | None = Field(None, description="Of Flash: 0 keeps the best tokens without noise.")
    seed: int | None = Field(None, description="The same seed gives the same audio.")
    max_seconds: float | None = Field(None, description="Upper bound of the audio of each segment of the text.")
    priority: str | None = Field(None, description="`live`, or `batch`: work for which nobody waits.")
    guard: str | None = Field(None, description="`off`, `stop` (ends speech that has gone wrong), `retry`.")
    guard_retries: int | None = Field(None, description="How often, 0 to 5.")
    reference_audio: str | None = Field(None, description="A clip to clone: base64, or a `data:` URI.")

    def options(self) -> dict[str, Any]:
        """Arguments for the client, those that were sent."""
        fields = Sampling.model_fields
        given = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        if "reference_audio" in given:  # the server decodes it
            given["reference_audio"] = given["reference_audio"].encode("ascii", "replace")
        return given


def warning(ignored: Iterable[str]) -> Mapping[str, str]:
    """The header that names ignored fields."""
    names = [re.sub(r"[^\w.-]", "?", name[:_LONGEST], flags=re.ASCII) for name in ignored]
    if not names:
        return {}
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return {"Warning": f'299 chatterbox-gateway "ignored: {", ".join(names[:_SHOWN])}{more}"'}
