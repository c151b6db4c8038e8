"""The commands `chatterbox voices ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chatterbox_client.cli_common import ProtocolOption, Seconds, Url, complain, connect, one_line_errors
from chatterbox_client.client import DEFAULT_TIMEOUT
from chatterbox_client.errors import InvalidRequest
from chatterbox_client.voices import KEY_VARIABLE, VoiceInfo

CLIPS = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4", ".aac", ".3gp", ".amr"),
    *(".webm", ".mka", ".aif", ".aiff", ".aifc", ".caf"),
)

app = typer.Typer(
    no_args_is_help=True,
    help=f"The voices that the server keeps. Changes need its key, in the variable {KEY_VARIABLE}.",
)

Name = Annotated[str, typer.Argument(help="1 to 64 letters, digits, dots, dashes or underscores.")]


@app.command("list")
def list_voices(
    context: typer.Context, url: Url = None, protocol: ProtocolOption = "http", timeout: Seconds = DEFAULT_TIMEOUT
) -> None:
    """Show all voices but the built-in one."""
    with one_line_errors(), connect(context, url, protocol, timeout) as client:
        for info in client.voices.list():
            _show(info)


@app.command()
def get(
    context: typer.Context,
    name: Name,
    url: Url = None,
    protocol: ProtocolOption = "http",
    timeout: Seconds = DEFAULT_TIMEOUT,
) -> None:
    """Show one voice."""
    with one_line_errors(), connect(context, url, protocol, timeout) as client:
        _show(client.voices.get(name))


@app.command()
def add(
    context: typer.Context,
    name: Name,
    clip: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A recording: WAV, MP3, M4A, ...")
    ],
    url: Url = None,
    protocol: ProtocolOption = "http",
    timeout: Seconds = DEFAULT_TIMEOUT,
) -> None:
    """Keep the voice of CLIP under NAME, in place of an older one."""
    with one_line_errors(), connect(context, url, protocol, timeout) as client:
        _show(client.voices.add(name, clip))


@app.command()
def delete(
    context: typer.Context,
    name: Name,
    url: Url = None,
    protocol: ProtocolOption = "http",
    timeout: Seconds = DEFAULT_TIMEOUT,
) -> None:
    """Remove a voice."""
    with one_line_errors(), connect(context, url, protocol, timeout) as client:
        client.voices.delete(name)


@app.command()
def lexicons(
    context: typer.Context, url: Url = None, protocol: ProtocolOption = "http", timeout: Seconds = DEFAULT_TIMEOUT
) -> None:
    """Show the words of the server's lexicon file, and what is spoken for them."""
    with one_line_errors(), connect(context, url, protocol, timeout) as client:
        found = client.voices.lexicons()
    for voice, words in {"": found.words, **found.voices}.items():
        for word, spoken in sorted(words.items()):
            typer.echo(f"{voice:<16} {word:<24} {spoken}")
    if found.error:
        complain(found.error)


@app.command("import")
def import_folder(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Its clips are named by their files.")],
    url: Url = None,
    protocol: ProtocolOption = "http",
    timeout: Seconds = DEFAULT_TIMEOUT,
) -> None:
    """Add every clip of FOLDER: `anna.wav` becomes `anna`. A clip that is refused does not stop the others."""
    refused = 0
    with one_line_errors(), connect(context, url, protocol, timeout) as client:
        for clip in sorted(path for path in folder.iterdir() if path.suffix.lower() in CLIPS):
            try:
                _show(client.voices.add(clip.stem, clip))
            except InvalidRequest as error:
                refused += 1
                complain(f"{clip}: {error}")
    if refused:
        raise typer.Exit(1)


def _show(info: VoiceInfo) -> None:
    typer.echo(f"{info.name:<24} {info.bytes / 1e6:6.2f} MB  {info.updated_at}  {info.content_hash[:12]}")
