"""The command `chatterbox`.

Exit status: 0 done, 1 the server or the file system said no (one line on stderr), 2 wrong usage.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from chatterbox_client import cli_status, cli_voices
from chatterbox_client.audio import Audio, Chunk, audio_file, concatenate, file_format
from chatterbox_client.cli_common import HeaderOption, Seconds, Url, complain, connect, one_line_errors, parse_headers
from chatterbox_client.client import DEFAULT_TIMEOUT, Client

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(cli_voices.app, name="voices")
app.command()(cli_status.status)

Show = Callable[[float], None]
"""Takes the seconds of audio that are there."""


@app.callback()
def chatterbox(context: typer.Context, header: HeaderOption = None) -> None:
    """Speak through a chatterbox-triton server."""
    make = context.obj or Client  # tests hand in a Client with a transport of their own
    context.obj = functools.partial(make, headers=parse_headers(header)) if header else make


@app.command()
def say(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(help="What to say; `-` or nothing reads standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", exists=True, dir_okay=False, help="A UTF-8 file that has the text.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .wav, .flac, .ogg or .mp3 file; `-` is raw 16-bit PCM to stdout.")
    ] = "speech.wav",
    voice: Annotated[str | None, typer.Option(help="A voice of the server.", show_default="default")] = None,
    reference_audio: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, readable=True, help="A clip of the voice to clone, 0.5 to 120 s."),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Language code, for multilingual models.", show_default="en")
    ] = None,
    text_normalization: Annotated[
        str | None,
        typer.Option(
            help="none; plain: Markdown, links and emoji made speakable; spoken: numbers in words too.",
            show_default="none",
        ),
    ] = None,
    markup: Annotated[
        str | None, typer.Option(help="none, or auto: SSML, and tags like [pause 0.5s].", show_default="none")
    ] = None,
    lexicon: Annotated[
        list[str] | None, typer.Option(help="WORD=SPOKEN: what to say for a word; may be given more than once.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Named parameters: fast, calm, happy, dramatic ...", show_default="upstream")
    ] = None,
    exaggeration: Annotated[float | None, typer.Option(help="Strength of emotion, 0 to 2.", show_default="0.5")] = None,
    cfg_weight: Annotated[
        float | None, typer.Option(help="Classifier-free guidance, 0 (off) to 3.", show_default="0.5")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Randomness, 0 (greedy) to 5.", show_default="0.8")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw from the likeliest tokens up to this mass, above 0 to 1.", show_default="1; Turbo and Nano 0.95"
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Leave out tokens below this share of the likeliest, 0 to 1.", show_default="0.05"),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 avoids repeating tokens; above 0 to 10.", show_default="1.2")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Draw from this many tokens, 0 (all) to 1000000; Turbo and Nano.", show_default="1000"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same audio.", show_default="random")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Longest audio of a segment of the text, above 0 to 160.", show_default="40")
    ] = None,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Show what would be spoken, stage by stage, and speak nothing.")
    ] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Write while the server is still speaking.")] = False,
    model: Annotated[str, typer.Option(help="Which model of a server that has several.")] = "chatterbox",
    url: Url = None,
    protocol: Annotated[
        Literal["http", "grpc"] | None, typer.Option(help="By default http, and grpc for streams.", show_default=False)
    ] = None,
    timeout: Seconds = DEFAULT_TIMEOUT,
) -> None:
    """Say TEXT and write it to a file: `chatterbox say "Hello." -o hello.wav`."""
    if not show_text:
        _check_output(output)
    words = _words(text, file)
    arguments: dict[str, Any] = {
        "voice": voice,
        "reference_audio": reference_audio,
        "language": language,
        "text_normalization": text_normalization,
        "markup": markup,
        "lexicon": _lexicon(lexicon),
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
    protocol = protocol or ("grpc" if stream else "http")
    if show_text:
        with one_line_errors(), connect(context, url, protocol, timeout, model=model) as client:
            _show_text(client.show_text(words, **arguments))
        return
    with one_line_errors(), connect(context, url, protocol, timeout, model=model) as client, _progress(words) as show:
        if stream:
            audio, seconds = _stream(client.stream(words, **arguments), output, show)
            first = f"the first after {seconds * 1000:.0f} ms, "
        else:
            audio = client.speak(words, **arguments)
            _write(audio, output)
    typer.echo(f"{output}: {audio.duration:.2f} s of audio, {first}RTF {audio.rtf:.3f}, seed {audio.seed}", err=True)


def _show_text(shown: Mapping[str, Any]) -> None:
    """Each stage's passages, then the segments with their pauses."""
    for stage in shown["stages"]:
        typer.echo(f"{stage['stage']}:")
        for passage in stage["passages"]:
            typer.echo(f"  {passage['text']}")
    typer.echo("segments:")
    for segment in shown["segments"]:
        typer.echo(f"  [{segment['start']}:{segment['end']}] {segment['text']}  ({segment['pause']:g} s)")
    for note in shown["notes"]:
        typer.echo(f"note: {note}")


def main() -> None:
    """Entry point of the installed command."""
    app()


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


def _lexicon(entries: list[str] | None) -> dict[str, str] | None:
    """The entries WORD=SPOKEN of a lexicon."""
    for entry in entries or []:
        if not entry.partition("=")[2]:
            raise typer.BadParameter(f"{entry!r} is not WORD=SPOKEN", param_hint="--lexicon")
    return {word: spoken for word, _, spoken in (entry.partition("=") for entry in entries)} if entries else None


def _words(text: str | None, file: Path | None) -> str:
    """The text to speak: TEXT, that of a file, or of standard input."""
    if file is not None:
        if text is not None:
            raise typer.BadParameter("give TEXT or --file, not both", param_hint="--file")
        return _decoded(file.read_bytes(), str(file), "--file")
    if text is not None and text != "-":
        if os.path.isfile(text):  # noqa: PTH113 - a text may be too long for a path
            meant = (
                f"a file is called that: `--file {text}` speaks its content, `echo {text} | chatterbox say` its name"
            )
            raise typer.BadParameter(meant, param_hint="TEXT")
        return text
    if sys.stdin.isatty():
        raise typer.BadParameter("give the text, or pipe it to standard input", param_hint="TEXT")
    return _decoded(typer.get_binary_stream("stdin").read(), "standard input", "TEXT")


def _decoded(content: bytes, name: str, hint: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{name} is not UTF-8: {error}", param_hint=hint) from error


def _stream(chunks: Iterator[Chunk], output: str, show: Show) -> tuple[Audio, float]:
    """Writes chunks as they come, so that what was spoken is there when the rest is not. Returns the audio and the
    seconds to the first chunk."""
    began, first, kept = time.monotonic(), 0.0, list[Chunk]()
    with _sink(output) as write:
        try:
            for chunk in chunks:
                first = first or time.monotonic() - began
                kept.append(chunk)
                write(chunk)
                show(sum(it.duration for it in kept))
        except BaseException:
            if kept and output != "-":
                complain(f"{output} has the first {sum(it.duration for it in kept):.2f} s")
            raise
    return concatenate(kept), first


@contextmanager
def _sink(output: str) -> Iterator[Callable[[Chunk], None]]:
    """Takes the chunks of a stream. A file appears with the first one, and is whole whenever the stream ends."""
    with ExitStack() as stack:
        opened: list[Callable[[Any], None]] = []

        def write(chunk: Chunk) -> None:
            if output == "-":
                _write_raw(chunk.to_bytes())
                return
            if not opened:
                opened.append(stack.enter_context(audio_file(output, chunk.sample_rate)))
            opened[0](chunk.samples)

        yield write


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
def _progress(text: str) -> Iterator[Show]:
    """Shows on a terminal how long it has taken, and what `show` is told: the seconds of audio that are there."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task(f"speaking {len(text):,} characters", total=None)
        yield lambda seconds: progress.update(
            task, description=f"speaking {len(text):,} characters, {seconds:.1f} s of audio so far"
        )


if __name__ == "__main__":
    main()
