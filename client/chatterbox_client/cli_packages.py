"""Commands that other packages add to `chatterbox`, through entry points of the group `chatterbox.commands`.

    [project.entry-points."chatterbox.commands"]
    batch = "chatterbox_batch.cli:batch_app"

Each names a `typer.Typer` with one command. It is imported when its command is called; the list of commands shows the
summary of the package instead, so that the command stays fast whatever is installed beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

GROUP = "chatterbox.commands"


def installed() -> Iterable[EntryPoint]:
    """The entry points of the packages that are installed."""
    return entry_points(group=GROUP)


def add_commands(app: typer.Typer, entries: Iterable[EntryPoint]) -> None:
    """Adds a command for each entry point, sorted by name."""
    for entry in sorted(entries, key=lambda it: it.name):
        _add(app, entry)


def _add(app: typer.Typer, entry: EntryPoint) -> None:
    forwarded: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(entry.name, help=_summary(entry), add_help_option=False, context_settings=forwarded)
    def call(context: typer.Context) -> None:
        command = typer.main.get_command(entry.load())
        name = f"{context.parent.info_name if context.parent else 'chatterbox'} {entry.name}"
        # not standalone: wrong usage is shown, and the status of an Exit returned, as for the commands of this package
        status = command.main(context.args, name, standalone_mode=False, obj=context.obj)
        if status:
            raise typer.Exit(int(status))


def _summary(entry: EntryPoint) -> str:
    package = entry.dist
    return f"{package.metadata['Summary']} ({package.name})." if package else f"From {entry.value}."
