"""Commands of other packages: loaded when they are called, and not before."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import typer
from typer.testing import CliRunner

from chatterbox_client.cli_packages import GROUP, add_commands

other = typer.Typer()


@other.command()
def greet(context: typer.Context, name: str, loud: bool = False, status: int = 0) -> None:
    """Greet somebody."""
    typer.echo(f"{'HELLO' if loud else 'hello'} {name}, {context.obj}")
    if status:
        raise typer.Exit(status)


def invoke(*arguments: str) -> Any:
    app = typer.Typer()

    @app.callback()
    def root() -> None:
        """The commands."""

    add_commands(
        app,
        [
            EntryPoint("greet", "tests.unit.test_cli_packages:other", GROUP),
            EntryPoint("absent", "tests.unit.no_such_module:app", GROUP),
        ],
    )
    return CliRunner().invoke(app, list(arguments), obj="the connection")


def test_arguments_options_and_the_connection_reach_the_command() -> None:
    done = invoke("greet", "Anna", "--loud")
    assert done.stdout == "HELLO Anna, the connection\n"
    assert done.exit_code == 0


def test_the_exit_status_is_that_of_the_command() -> None:
    assert invoke("greet", "Anna", "--status", "3").exit_code == 3


def test_wrong_usage_has_status_2_and_names_the_option() -> None:
    done = invoke("greet", "Anna", "--quiet")
    assert done.exit_code == 2
    assert "--quiet" in done.stderr


def test_help_of_a_command_is_its_own() -> None:
    done = invoke("greet", "--help")
    assert "Greet somebody." in done.stdout
    assert "--loud" in done.stdout


def test_the_list_names_commands_without_loading_them() -> None:
    done = invoke("--help")
    assert done.exit_code == 0
    assert "absent" in done.stdout


def test_the_installed_commands_are_listed_without_ray() -> None:
    code = """
import sys
from typer.testing import CliRunner
from chatterbox_client.cli import app
shown = CliRunner().invoke(app, ["--help"]).stdout
assert "batch" in shown and "book" in shown, shown
heavy = {"ray", "pyarrow", "pandas", "torch", "av", "chatterbox_batch"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
