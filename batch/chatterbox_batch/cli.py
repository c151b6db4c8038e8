"""The command `chatterbox batch`. Ray is imported when there is something to speak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chatterbox_batch import options
from chatterbox_client.cli_common import fail, one_line_errors
from chatterbox_client.client import DEFAULT_TIMEOUT, Client

FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm", "ulaw", "alaw")

batch_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="A .jsonl, .csv, .parquet, .txt or .epub file, or a folder of them: a path, or a URI like s3://bucket/texts.",
    ),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="A folder, which is made if it is not there: a path or a URI.")]
Format = Annotated[str, typer.Option(help=f"Of the files: {', '.join(FORMATS)}.")]
SampleRate = Annotated[
    int | None, typer.Option(min=8_000, max=48_000, help="Of the files, in Hz.", show_default="24000")
]
Speed = Annotated[float, typer.Option(min=0.25, max=4.0, help="Of the speech.")]
Ignore = Annotated[list[str] | None, typer.Option(help="A column to leave out; may be given more than once.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Speak the rows again that have an error.")]


@batch_app.command()
def batch(
    context: typer.Context,
    source: Input,
    out: Out,
    checkpoint: options.Checkpoint = None,
    url: options.Url = None,
    format: Format = "wav",
    sample_rate: SampleRate = None,
    speed: Speed = 1.0,
    ignore: Ignore = None,
    seed: options.Seed = 0,
    part_chars: options.PartChars = 1_500,
    retry_failed: RetryFailed = False,
    protocol: options.ProtocolName = "grpc",
    model: options.Model = "chatterbox",
    timeout: options.Timeout = DEFAULT_TIMEOUT,
    address: options.Address = None,
    actors: options.Actors = None,
    concurrency: options.Concurrency = 32,
) -> None:
    """Speak every row of INPUT into a file of OUT, with OUT/manifest.parquet.

    Columns: text, id, voice, seed and any other input of a request. What the manifest has is not spoken again, so a run
    that was stopped is resumed by the same command. Exit status 1: some rows failed.
    """
    from chatterbox_batch.plan import TablePlan
    from chatterbox_batch.run import Job

    speech = options.Speech(checkpoint, tuple(url or ()), protocol, model, timeout, address, actors, concurrency)
    with one_line_errors():
        job = Job(
            TablePlan(_absolute(source), tuple(ignore or ()), part_chars, seed),
            _records(out),
            _output(format, sample_rate, speed),
            retry_failed,
        )
        try:
            summary = options.speak(job, speech, context.obj or Client)
        except ValueError as error:  # of the input as a whole
            raise typer.BadParameter(str(error), param_hint="INPUT") from error
    typer.echo(f"{out}: {summary.rows} rows, {summary.failed} failed, {summary.seconds:.1f} s of audio", err=True)
    if summary.failed:
        fail(f"{summary.failed} rows have an error, in manifest.parquet; --retry-failed speaks them again")


def _absolute(location: str) -> str:
    """It is read in another process, whose folder may be another."""
    return location if "://" in location else str(Path(location).absolute())


def _records(out: str) -> Any:
    from chatterbox_batch.folder import Folder
    from chatterbox_batch.records import Records

    try:
        return Records(Folder(out))
    except ValueError as error:
        raise typer.BadParameter(f"{out}: {error}", param_hint="OUT") from error


def _output(format: str, sample_rate: int | None, speed: float) -> Any:
    from chatterbox_gateway.output import Output

    if format not in FORMATS:
        raise typer.BadParameter(f"{format!r} is none of {', '.join(FORMATS)}", param_hint="--format")
    return Output(format, sample_rate, speed)
