"""The fields of ElevenLabs' requests and messages, in this server's terms."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from chatterbox_client.errors import InvalidRequest, quote
from chatterbox_client.turns import new_seed
from chatterbox_gateway.output import RATES, Output
from chatterbox_gateway.parameters import Body
from chatterbox_gateway.server_status import ServerStatus
from chatterbox_gateway.speech import Speaker, SpeechRequest

THEIR_MODELS = ("eleven_",)
"""Prefix of ElevenLabs' own model names, which mean the first model that is served."""

_THEIR_VOICE = re.compile(r"[A-Za-z0-9]{20}")
"""The ids of ElevenLabs' voices. They mean the built-in voice unless a voice is stored under one."""

DEFAULT_FORMAT = "mp3_44100_128"

_FORMAT = re.compile(r"(mp3|opus)_(\d+)_(\d+)|(pcm|ulaw|alaw)_(\d+)")

Normalization = Literal["auto", "on", "off"]


class VoiceSettings(BaseModel):
    """How to speak. What is left out has the server's default."""

    model_config = ConfigDict(extra="ignore")

    stability: float | None = Field(None, ge=0, le=1, description="`temperature`, from 1.1 (0) over 0.8 (0.5) to 0.5.")
    similarity_boost: float | None = Field(
        None, ge=0, le=1, description="`cfg_weight`, from 0 over 0.5 (0.75) to 0.67."
    )
    style: float | None = Field(None, ge=0, le=1, description="`exaggeration`, from 0.5 (0) to 1.5.")
    speed: float | None = Field(None, ge=0.25, le=4, description="Of the speech, at the same pitch.")
    use_speaker_boost: bool | None = Field(None, description="Ignored.")

    def options(self, supported: Collection[str] | None) -> dict[str, Any]:
        """Arguments for the client. supported: inputs of the model; None: all."""
        mapped = {
            "temperature": None if self.stability is None else 1.1 - 0.6 * self.stability,
            "cfg_weight": None if self.similarity_boost is None else self.similarity_boost / 1.5,
            "exaggeration": None if self.style is None else 0.5 + self.style,
        }
        return {
            name: round(value, 4)
            for name, value in mapped.items()
            if value is not None and (supported is None or name in supported)
        }


DEFAULT_SETTINGS = VoiceSettings.model_validate({})


class GenerationConfig(BaseModel):
    """How text is collected."""

    model_config = ConfigDict(extra="ignore")

    chunk_length_schedule: list[Annotated[float, Field(ge=1, le=10_000)]] | None = None


class SpeechBody(Body):
    """A text and how to speak it. Unknown fields are ignored, and named in `Warning`."""

    text: str = Field(min_length=1)
    model_id: str | None = Field(None, description="A served model; ElevenLabs' own names mean the first.")
    language_code: str | None = Field(None, description="Of a multilingual model.")
    voice_settings: VoiceSettings = DEFAULT_SETTINGS
    seed: int | None = Field(None, description="The same seed gives the same audio.")
    apply_text_normalization: Normalization = "auto"


class SocketMessage(BaseModel):
    """What a client sends over a socket."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str | None = None
    context_id: str | None = Field(None, max_length=200, validation_alias=AliasChoices("context_id", "contextId"))
    flush: bool | None = None
    try_trigger_generation: bool | None = None
    close_context: bool | None = None
    close_socket: bool | None = None
    voice_settings: VoiceSettings | None = None
    generation_config: GenerationConfig | None = None
    xi_api_key: str | None = Field(None, validation_alias=AliasChoices("xi_api_key", "xi-api-key"))
    authorization: str | None = None


class SocketQuery(BaseModel):
    """The query of a socket. Other fields are ignored: frameworks send what their version of the API knows."""

    model_config = ConfigDict(extra="ignore")

    model_id: str | None = None
    language_code: str | None = None
    output_format: str = DEFAULT_FORMAT
    inactivity_timeout: float = Field(20.0, gt=0, le=180)
    sync_alignment: bool = False
    auto_mode: bool = False
    enable_ssml_parsing: bool = False
    apply_text_normalization: Normalization = "auto"
    seed: int | None = None


@dataclass(frozen=True)
class Manner:
    """How a text is spoken."""

    model: str
    voice: str | None
    output: Output
    language: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def request(self, text: str, settings: dict[str, Any]) -> SpeechRequest:
        """The request for a text. settings: of the voice, as options."""
        language = {"language": self.language} if self.language else {}
        return SpeechRequest(text, self.model, self.voice, {**self.options, **settings, **language})


async def manner_of(
    speaker: Speaker,
    voice: str,
    output_format: str,
    fields: SpeechBody | SocketQuery,
    *,
    options: dict[str, Any] | None = None,
) -> Manner:
    """How a request wants to be spoken. Raises InvalidRequest and NotFound."""
    output = output_of(output_format)
    chosen = dict(options or {})
    chosen["seed"] = new_seed() if fields.seed is None else fields.seed
    if fields.apply_text_normalization != "auto":
        chosen["text_normalization"] = "spoken" if fields.apply_text_normalization == "on" else "none"
    model = fields.model_id or ""
    served = speaker.models[0] if not model or _is_theirs(model, speaker.models) else speaker.served(model)
    named = await speaker.stored_voice([voice]) if _THEIR_VOICE.fullmatch(voice) else voice
    return Manner(served, named, output, fields.language_code, chosen)


async def model_parameters(server: ServerStatus, model: str, settings: VoiceSettings) -> Collection[str] | None:
    """The parameters that a model supports, as far as its server tells and the settings need it; None: unknown."""
    if not settings.model_fields_set - {"speed", "use_speaker_boost"}:
        return None
    contract = (await server.read(model)).contract
    return list(json.loads(contract["parameters"])) if contract else None


def output_of(name: str) -> Output:
    """The form of the audio in ElevenLabs' terms: codec, sampling rate, kilobits per second. Raises InvalidRequest."""
    found = _FORMAT.fullmatch(name)
    if found is None:
        raise InvalidRequest(
            f"output_format is {quote(name)}; it must be mp3_RATE_KBPS, opus_RATE_KBPS, pcm_RATE, ulaw_RATE or "
            "alaw_RATE"
        )
    codec, rate, kilobits = found[1] or found[4], int(found[2] or found[5]), found[3]
    if not RATES[0] <= rate <= RATES[1]:
        raise InvalidRequest(f"output_format is {quote(name)}; its rate must be from {RATES[0]} to {RATES[1]}")
    if kilobits is not None and not 16 <= int(kilobits) <= 256:
        raise InvalidRequest(f"output_format is {quote(name)}; its bit rate must be from 16 to 256 kilobits per second")
    return Output(codec, rate, bit_rate=None if kilobits is None else int(kilobits) * 1_000)


def _is_theirs(model: str, served: list[str]) -> bool:
    return model not in served and model.startswith(THEIR_MODELS)
