"""The command `chatterbox`.

Exit status: 0 done, 1 the server or the file system said no (one line on stderr), 2 wrong usage.
"""

from __future__ import annotations

import codecs
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from chatterbox_client import cli_options as options
from chatterbox_client import cli_packages, cli_status, cli_voices
from chatterbox_client.audio import Audio, Chunk, audio_file, concatenate, file_format
from chatterbox_client.cli_common import HeaderOption, Seconds, Url, complain, connect, one_line_errors, parse_headers
from chatterbox_client.client import DEFAULT_TIMEOUT, Client
from chatterbox_client.errors import InvalidRequest
from chatterbox_client.subtitles import subtitle_format
from chatterbox_client.subtitles import subtitles as of_words

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
    text: options.TextArgument = None,
    file: options.TextFile = None,
    output: options.Output = "speech.wav",
    voice: options.Voice = None,
    reference_audio: options.ReferenceAudio = None,
    language: options.Language = None,
    text_normalization: options.TextNormalization = None,
    markup: options.Markup = None,
    lexicon: options.Lexicon = None,
    preset: options.Preset = None,
    exaggeration: options.Exaggeration = None,
    cfg_weight: options.CfgWeight = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    top_k: options.TopK = None,
    num_steps: options.NumSteps = None,
    time_shift_tau: options.TimeShiftTau = None,
    omnivoice_schedule_t_shift: options.OmnivoiceScheduleTShift = None,
    position_temperature: options.PositionTemperature = None,
    seed: options.Seed = None,
    max_seconds: options.MaxSeconds = None,
    priority: options.Priority = None,
    guard: options.Guard = None,
    guard_retries: options.GuardRetries = None,
    subtitles: options.Subtitles = None,
    show_text: options.ShowText = False,
    stream: options.Streamed = False,
    model: options.Model = "chatterbox",
    url: Url = None,
    protocol: options.OptionalProtocol = None,
    timeout: Seconds = DEFAULT_TIMEOUT,
) -> None:
    """Say TEXT and write it to a file: `chatterbox say "Hello." -o hello.wav`."""
    if not show_text:
        _check_files(output, subtitles)
    words = _words(text, file, stream=stream and not show_text)
    arguments: dict[str, Any] = {
        "voice": voice,
        "reference_audio": reference_audio,
        "language": language,
        "text_normalization": text_normalization,
        "markup": markup,
        "lexicon": _lexicon(lexicon),
    }
    arguments |= {"preset": preset, "seed": seed, "max_seconds": max_seconds, "priority": priority}
    arguments |= {"exaggeration": exaggeration, "cfg_weight": cfg_weight, "temperature": temperature, "top_p": top_p}
    arguments |= {"min_p": min_p, "repetition_penalty": repetition_penalty, "top_k": top_k, "num_steps": num_steps}
    arguments |= {"time_shift_tau": time_shift_tau, "position_temperature": position_temperature}
    arguments |= {"omnivoice_schedule_t_shift": omnivoice_schedule_t_shift}
    arguments |= {"guard": guard, "guard_retries": guard_retries, "word_times": True if subtitles else None}
    protocol = protocol or ("grpc" if stream else "http")
    with one_line_errors(), connect(context, url, protocol, timeout, model=model) as client, _progress(words) as show:
        speak: Callable[..., str] = _show_text if show_text else _stream if stream else _speak
        line = speak(client, words, arguments, output, show, subtitles)
    if line:
        typer.echo(line, err=True)


def _speak(
    client: Client, words: str, arguments: dict[str, Any], output: str, _show: Show, subtitles: str | None
) -> str:
    """Writes the whole audio; returns what is said about it."""
    audio = client.speak(words, **arguments)
    _write(audio, output)
    _write_subtitles(audio, subtitles)
    return _figures(audio, output)


def _figures(audio: Audio, output: str, first: str = "") -> str:
    return f"{output}: {audio.duration:.2f} s of audio, {first}RTF {audio.rtf:.3f}, seed {audio.seed}"


def _show_text(
    client: Client, words: str, arguments: dict[str, Any], _output: str, _show: Show, _subtitles: str | None
) -> str:
    """Each stage's passages, then the segments with their pauses."""
    shown = client.show_text(words, **arguments)
    for stage in shown["stages"]:
        typer.echo(f"{stage['stage']}:")
        for passage in stage["passages"]:
            typer.echo(f"  {passage['text']}")
    typer.echo("segments:")
    for segment in shown["segments"]:
        typer.echo(f"  [{segment['start']}:{segment['end']}] {segment['text']}  ({segment['pause']:g} s)")
    for note in shown["notes"]:
        typer.echo(f"note: {note}")
    return ""


cli_packages.add_commands(app, cli_packages.installed())


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


def _check_files(output: str, subtitles: str | None) -> None:
    _check_output(output)
    _check_subtitles(subtitles)


def _check_subtitles(path: str | None) -> None:
    if path is None:
        return
    try:
        subtitle_format(path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--subtitles") from error
    if not Path(path).absolute().parent.is_dir():
        raise typer.BadParameter(f"no such folder: {Path(path).parent}", param_hint="--subtitles")


def _lexicon(entries: list[str] | None) -> dict[str, str] | None:
    """The entries WORD=SPOKEN of a lexicon."""
    for entry in entries or []:
        if not entry.partition("=")[2]:
            raise typer.BadParameter(f"{entry!r} is not WORD=SPOKEN", param_hint="--lexicon")
    return {word: spoken for word, _, spoken in (entry.partition("=") for entry in entries)} if entries else None


def _words(text: str | None, file: Path | None, *, stream: bool = False) -> str | Iterator[str]:
    """The text to speak: TEXT, that of a file, or of standard input, for a stream in the pieces that are written."""
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
    if stream:
        return _pieces(sys.stdin.fileno())
    return _decoded(typer.get_binary_stream("stdin").read(), "standard input", "TEXT")


def _pieces(pipe: int) -> Iterator[str]:
    """What is written to a pipe, as it is written."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        while data := os.read(pipe, 65_536):
            yield decoder.decode(data)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"standard input is not UTF-8: {error}") from error


def _decoded(content: bytes, name: str, hint: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{name} is not UTF-8: {error}", param_hint=hint) from error


def _stream(
    client: Client,
    words: str | Iterator[str],
    arguments: dict[str, Any],
    output: str,
    show: Show,
    subtitles: str | None,
) -> str:
    """Writes chunks as they come, so that what was spoken is there when the rest is not; returns what is said about
    the audio."""
    began, first, kept = time.monotonic(), 0.0, list[Chunk]()
    with _sink(output) as write:
        try:
            for chunk in client.stream(words, **arguments):
                first = first or time.monotonic() - began
                kept.append(chunk)
                write(chunk)
                show(sum(it.duration for it in kept))
        except BaseException:
            if kept and output != "-":
                complain(f"{output} has the first {sum(it.duration for it in kept):.2f} s")
            raise
    audio = concatenate(kept)
    _write_subtitles(audio, subtitles)
    return _figures(audio, output, f"the first after {first * 1000:.0f} ms, ")


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


def _write_subtitles(audio: Audio, path: str | None) -> None:
    if path is not None:
        Path(path).write_text(of_words(audio.words, subtitle_format(path)), encoding="utf-8")


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
def _progress(text: str | Iterator[str]) -> Iterator[Show]:
    """Shows on a terminal how long it has taken, and what `show` is told: the seconds of audio that are there."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        what = f"speaking {len(text):,} characters" if isinstance(text, str) else "speaking what is written"
        task = progress.add_task(what, total=None)
        yield lambda seconds: progress.update(task, description=f"{what}, {seconds:.1f} s of audio so far")


if __name__ == "__main__":
    main()
