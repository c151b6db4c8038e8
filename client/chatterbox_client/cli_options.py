"""The options of `chatterbox say`: what they mean and their defaults, which are the server's unless given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

TextArgument = Annotated[str | None, typer.Argument(help="What to say; `-` or nothing reads standard input.")]
TextFile = Annotated[
    Path | None, typer.Option("--file", exists=True, dir_okay=False, help="A UTF-8 file that has the text.")
]
Output = Annotated[
    str, typer.Option("--output", "-o", help="A .wav, .flac, .ogg or .mp3 file; `-` is raw 16-bit PCM to stdout.")
]
Streamed = Annotated[bool, typer.Option("--stream", help="Write while the server is still speaking.")]
Model = Annotated[str, typer.Option(help="Which model of a server that has several.")]
OptionalProtocol = Annotated[
    Literal["http", "grpc"] | None, typer.Option(help="By default http, and grpc for streams.", show_default=False)
]

Voice = Annotated[str | None, typer.Option(help="A voice of the server.", show_default="default")]
ReferenceAudio = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, readable=True, help="A clip of the voice to clone, 0.5 to 120 s."),
]
Language = Annotated[str | None, typer.Option(help="Language code, for multilingual models.", show_default="en")]
TextNormalization = Annotated[
    str | None,
    typer.Option(
        help="none; plain: Markdown, links and emoji made speakable; spoken: numbers in words too.", show_default="none"
    ),
]
Markup = Annotated[
    str | None, typer.Option(help="none, or auto: SSML, and tags like [pause 0.5s].", show_default="none")
]
Lexicon = Annotated[
    list[str] | None, typer.Option(help="WORD=SPOKEN: what to say for a word; may be given more than once.")
]
ShowText = Annotated[
    bool, typer.Option("--show-text", help="Show what would be spoken, stage by stage, and speak nothing.")
]
Guard = Annotated[
    str | None,
    typer.Option(help="off; stop: end speech that has gone wrong; retry: speak it again.", show_default="off"),
]
GuardRetries = Annotated[int | None, typer.Option(help="How often, 0 to 5.", show_default="2")]
Subtitles = Annotated[
    str | None, typer.Option(help="Also write a .srt or .vtt file that says when each word is spoken.")
]
Preset = Annotated[
    str | None, typer.Option(help="Named parameters: fast, calm, happy, dramatic ...", show_default="upstream")
]
Exaggeration = Annotated[float | None, typer.Option(help="Strength of emotion, 0 to 2.", show_default="0.5")]
CfgWeight = Annotated[float | None, typer.Option(help="Classifier-free guidance, 0 (off) to 3.", show_default="0.5")]
Temperature = Annotated[float | None, typer.Option(help="Randomness, 0 (greedy) to 5.", show_default="0.8")]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Draw from the likeliest tokens up to this mass, above 0 to 1.", show_default="1; Turbo and Nano 0.95"
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Leave out tokens below this share of the likeliest, 0 to 1.", show_default="0.05"),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 avoids repeating tokens; above 0 to 10.", show_default="1.2")
]
TopK = Annotated[
    int | None,
    typer.Option(help="Draw from this many tokens, 0 (all) to 1000000; Turbo and Nano.", show_default="1000"),
]
NumSteps = Annotated[int | None, typer.Option(help="Flash: passes of a block at most, 1 to 32.", show_default="10")]
TimeShiftTau = Annotated[
    float | None, typer.Option(help="Flash: more tokens are kept early, 0 (none) to 10.", show_default="0.1")
]
OmnivoiceScheduleTShift = Annotated[
    float | None, typer.Option(help="Flash: below 1 the last passes keep most tokens, 0 to 10.", show_default="0.5")
]
PositionTemperature = Annotated[
    float | None, typer.Option(help="Flash: noise in the choice of kept tokens, 0 (none) to 10.", show_default="5")
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same audio.", show_default="random")]
Priority = Annotated[str | None, typer.Option(help="live, or batch: work for which nobody waits.", show_default="live")]
MaxSeconds = Annotated[
    float | None, typer.Option(help="Longest audio of a segment of the text, above 0 to 160.", show_default="40")
]
