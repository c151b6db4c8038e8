"""The command `chatterbox`.

Exit status: 0 done, 1 the server or the file system said no (one line on stderr), 2 wrong usage.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from chatterbox_client import cli_openai, cli_voices
from chatterbox_client.audio import Audio, Chunk, concatenate, file_format
from chatterbox_client.cli_common import (
    HEADERS,
    ProtocolOption,
    Seconds,
    Url,
    connect,
    fail,
    one_line_errors,
)
from chatterbox_client.client import DEFAULT_TIMEOUT, Client

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(cli_voices.app, name="voices")
app.command()(cli_openai.openai)


@app.callback()
def chatterbox(
    context: typer.Context,
    header: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CHATTERBOX_HEADERS",
            help='Sent with every call, "NAME: VALUE": a key for a server that restricts its protocols (the variable: '
            "NAME:VALUE, spaces between several).",
        ),
    ] = None,
) -> None:
    """Speak through a chatterbox-triton server."""
    make = context.obj or Client  # tests hand in a Client with a transport of their own
    context.meta[HEADERS] = _headers(header or [])
    context.obj = functools.partial(make, headers=context.meta[HEADERS]) if header else make


@app.command()
def say(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(help="What to say; `-` or nothing reads standard input.")] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .wav, .flac, .ogg or .mp3 file; `-` is raw 16-bit PCM to stdout.")
    ] = "speech.wav",
    voice: Annotated[str | None, typer.Option(help="A voice of the server.")] = None,
    reference_audio: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, readable=True, help="A clip of the voice to clone.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Language code, for multilingual models.")] = None,
    preset: Annotated[str | None, typer.Option(help="Named parameters: fast, calm, happy, dramatic ...")] = None,
    exaggeration: Annotated[float | None, typer.Option(help="Strength of emotion.")] = None,
    cfg_weight: Annotated[float | None, typer.Option(help="Classifier-free guidance; 0 turns it off.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Randomness; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the most likely tokens up to this mass.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Leave out tokens below this share of the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 avoids repeating tokens.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many tokens; Turbo and Nano models.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same audio.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Longest audio of one segment of the text.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Write while the server is still speaking; always over gRPC.")
    ] = False,
    model: Annotated[str, typer.Option(help="Which model of a server that has several.")] = "chatterbox",
    url: Url = None,
    protocol: ProtocolOption = "http",
    timeout: Seconds = DEFAULT_TIMEOUT,
) -> None:
    """Say TEXT and write it to a file: `chatterbox say "Hello." -o hello.wav`."""
    _check_output(output)
    words = _read_stdin() if text in (None, "-") else text
    arguments: dict[str, Any] = {
        "voice": voice,
        "reference_audio": reference_audio,
        "language": language,
        "preset": preset,
        "exaggeration": exaggeration,
        "cfg_weight": cfg_weight,
        "temperature": temperature,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "top_k": top_k,
        "seed": seed,
        "max_seconds": max_seconds,
    }
    first = ""
    protocol = "grpc" if stream else protocol
    with one_line_errors(), connect(context, url, protocol, timeout, model=model) as client, _progress():
        if stream:
            audio, seconds = _stream(client.stream(words, **arguments), output)
            first = f"the first after {seconds * 1000:.0f} ms, "
        else:
            audio = client.speak(words, **arguments)
            _write(audio, output)
    typer.echo(f"{output}: {audio.duration:.2f} s of audio, {first}RTF {audio.rtf:.3f}, seed {audio.seed}", err=True)


@app.command()
def status(context: typer.Context, url: Url = None, protocol: ProtocolOption = "http", timeout: Seconds = 10.0) -> None:
    """Show whether the server is ready (exit status 0 or 1) and what its model takes and gives."""
    with one_line_errors(), connect(context, url, protocol, timeout) as client:
        if not client.ready():
            fail("the server is there, but its model is not ready")
        metadata = client.metadata()
    typer.echo(f"{metadata['name']}: ready, version {', '.join(metadata['versions'])}, {metadata['platform']}")
    for side in ("inputs", "outputs"):
        typer.echo(f"{side}:")
        for tensor in metadata[side]:
            typer.echo(f"  {tensor['name']:<20}{tensor['datatype']:<7}{tensor['shape']}")


def main() -> None:
    """Entry point of the installed command."""
    app()


def _headers(given: list[str]) -> dict[str, str]:
    pairs = [entry.partition(":") for entry in given]
    if not all(name.strip() and colon for name, colon, _ in pairs):
        raise typer.BadParameter('give "NAME: VALUE"', param_hint="--header")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _check_output(output: str) -> None:
    """Before the server works for nothing."""
    if output == "-":
        if sys.stdout.isatty():
            raise typer.BadParameter("raw samples are not for a terminal; pipe them", param_hint="--output")
        return
    try:
        file_format(output)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    if not Path(output).absolute().parent.is_dir():
        raise typer.BadParameter(f"no such folder: {Path(output).parent}", param_hint="--output")


def _read_stdin() -> str:
    if sys.stdin.isatty():
        raise typer.BadParameter("give the text, or pipe it to standard input", param_hint="TEXT")
    try:
        return typer.get_binary_stream("stdin").read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"standard input is not UTF-8: {error}", param_hint="TEXT") from error


def _stream(chunks: Iterator[Chunk], output: str) -> tuple[Audio, float]:
    """Writes chunks as they come, into a file when all are there. Returns the audio and the seconds to the first."""
    began, first, kept = time.monotonic(), 0.0, list[Chunk]()
    for chunk in chunks:
        first = first or time.monotonic() - began
        kept.append(chunk)
        if output == "-":
            _write_raw(chunk.to_bytes())
    audio = concatenate(kept)
    if output != "-":
        audio.save(output)
    return audio, first


def _write(audio: Audio, output: str) -> None:
    if output == "-":
        _write_raw(audio.to_bytes("s16"))
    else:
        audio.save(output)


def _write_raw(data: bytes) -> None:
    stdout: Any = typer.get_binary_stream("stdout")
    rest = memoryview(data)
    while rest:
        rest = rest[stdout.write(rest) :]  # with PYTHONUNBUFFERED a write may take a part only
    stdout.flush()


@contextmanager
def _progress() -> Iterator[None]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        progress.add_task("speaking", total=None)
        yield


if __name__ == "__main__":
    main()
