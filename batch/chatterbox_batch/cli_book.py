"""The command `chatterbox book`. Ray is imported when there is something to speak."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from chatterbox_batch import options
from chatterbox_client.cli_common import complain, fail, one_line_errors
from chatterbox_client.client import DEFAULT_TIMEOUT, Client

book_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="An .epub, .md or .txt file.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The .m4b file.")]
Title = Annotated[str | None, typer.Option(help="By default the book's own, or the file's name.")]
Author = Annotated[str | None, typer.Option(help="By default the book's own.")]
Cover = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A JPEG or PNG file; by default the book's own.")
]
Voice = Annotated[str | None, typer.Option(help="A voice of the server.", show_default="default")]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input", help="NAME=VALUE: any input of a request, as temperature=0.7; may be given more than once."
    ),
]
Loudness = Annotated[
    str, typer.Option(help="acx (-20 dB RMS, peaks below -3 dB), podcast (-16 LUFS, -1 dB), a number of LUFS, or none.")
]
Peak = Annotated[float | None, typer.Option(max=0.0, help="Highest peak in dB.", show_default="the preset's, or -3")]
Pause = Annotated[float, typer.Option(min=0.0, max=30.0, help="Seconds of silence after it.")]
SampleRate = Annotated[int, typer.Option(min=8_000, max=48_000, help="Of the file, in Hz.")]
BitRate = Annotated[int, typer.Option(min=16, max=320, help="Of the file, in kbit/s.")]
Keep = Annotated[bool, typer.Option("--keep-parts", help="Keep OUTPUT.parts, to make the file again without speaking.")]


@book_app.command()
def book(
    context: typer.Context,
    file: File,
    output: Output = Path("book.m4b"),
    title: Title = None,
    author: Author = None,
    cover: Cover = None,
    voice: Voice = None,
    inputs: Input = None,
    seed: options.Seed = 0,
    loudness: Loudness = "acx",
    peak: Peak = None,
    heading_pause: Pause = 1.2,
    paragraph_pause: Pause = 0.6,
    chapter_pause: Pause = 2.0,
    sample_rate: SampleRate = 44_100,
    bit_rate: BitRate = 96,
    keep_parts: Keep = False,
    checkpoint: options.Checkpoint = None,
    url: options.Url = None,
    part_chars: options.PartChars = 1_500,
    protocol: options.ProtocolName = "grpc",
    model: options.Model = "chatterbox",
    timeout: options.Timeout = DEFAULT_TIMEOUT,
    address: options.Address = None,
    actors: options.Actors = None,
    concurrency: options.Concurrency = 32,
) -> None:
    """Speak a book into an M4B with chapter marks: `chatterbox book story.epub -o story.m4b`.

    A run that was stopped is resumed by the same command: what has been spoken is in OUTPUT.parts until then.
    """
    from chatterbox_batch.books.narration import Binding, Narration, Pauses, bind
    from chatterbox_batch.folder import Folder
    from chatterbox_batch.records import Records
    from chatterbox_batch.run import Job
    from chatterbox_gateway.output import Output as Form

    if output.suffix.lower() != ".m4b":
        raise typer.BadParameter(f"{output}: use the extension .m4b", param_hint="--output")
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"no such folder: {output.parent}", param_hint="--output")
    speech = options.Speech(checkpoint, tuple(url or ()), protocol, model, timeout, address, actors, concurrency)
    target = _target(loudness, peak)
    pauses = Pauses(heading_pause, paragraph_pause, chapter_pause)
    work = output.with_name(output.name + ".parts")
    with one_line_errors():
        found = _book(file, title, author, cover)
        narration = Narration(found, _inputs(voice, inputs), seed, part_chars)
        job = Job(narration, Records(Folder(str(work))), Form("flac"), retry_failed=True)
        options.speak(job, speech, context.obj or Client)
        complain(f"making {output}: {len(found.chapters)} chapters")
        try:
            seconds = bind(narration, job.records.folder, output, Binding(pauses, target, sample_rate, bit_rate * 1000))
        except ValueError as error:  # not all has been spoken, or the cover is no picture
            fail(f"{error}; the same command goes on from here")
    if not keep_parts:
        shutil.rmtree(work)
    typer.echo(f"{output}: {len(found.chapters)} chapters, {seconds:.1f} s of audio", err=True)


def _book(path: Path, title: str | None, author: str | None, cover: Path | None) -> Any:
    from chatterbox_batch.books import BookError
    from chatterbox_batch.books.files import read_book

    try:
        found = read_book(path)
    except BookError as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="FILE") from error
    return dataclasses.replace(
        found,
        title=found.title if title is None else title,
        author=found.author if author is None else author,
        cover=found.cover if cover is None else cover.read_bytes(),
    )


def _inputs(voice: str | None, entries: list[str] | None) -> dict[str, Any]:
    """The inputs of all requests, as the rows of a table have them."""
    from chatterbox_batch.rows import make_row

    given = dict(entry.partition("=")[::2] for entry in entries or [])
    if not all(given.values()):
        raise typer.BadParameter("give NAME=VALUE", param_hint="--input")
    if {"id", "text"} & given.keys():
        raise typer.BadParameter("the texts are the book's", param_hint="--input")
    row = make_row({"text": "any", **given, **({"voice": voice} if voice else {})}, "")
    if row.error:
        raise typer.BadParameter(row.error, param_hint="--input")
    clip = row.inputs.get("reference_audio")
    if clip is None or "://" in clip:
        return dict(row.inputs)
    return {**row.inputs, "reference_audio": str(Path(clip).absolute())}  # it is read in other processes


def _target(loudness: str, peak: float | None) -> Any:
    from chatterbox_batch.books.loudness import PRESETS, Target

    if loudness == "none":
        if peak is not None:
            raise typer.BadParameter("nothing is limited without --loudness", param_hint="--peak")
        return None
    try:
        target = PRESETS.get(loudness) or Target("lufs", float(loudness), -3.0)
    except ValueError as error:
        known = ", ".join(PRESETS)
        raise typer.BadParameter(
            f"{loudness!r} is none of {known}, none, or a number", param_hint="--loudness"
        ) from error
    if not -60 <= target.level <= 0:
        raise typer.BadParameter("give -60 to 0", param_hint="--loudness")
    return target if peak is None else dataclasses.replace(target, peak=peak)
