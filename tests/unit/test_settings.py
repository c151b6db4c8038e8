"""`chatterbox-serve --print-config`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.launcher.cli import main
from chatterbox_engine.launcher.settings import check, describe, parameters_of
from tests.server.repository import add_pair, add_voices

FOREIGN = """
backend: "python"
input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
parameters: { key: "EXECUTION_ENV_PATH" value: { string_value: "env.tar.gz" } }
"""
REPOSITORY = Path(__file__).parents[2] / "model_repository"


def rows(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split(maxsplit=2)[1:] for line in table.splitlines() if line.startswith("  ")}


def test_the_engines_of_a_repository_are_found_with_their_parameters(tmp_path: Path) -> None:
    add_pair(tmp_path, "turbo", checkpoint="/models/turbo")
    add_voices(tmp_path)
    assert parameters_of(tmp_path) == {"turbo": {"checkpoint": "/models/turbo"}}
    assert list(parameters_of(REPOSITORY)) == ["chatterbox"]


def test_every_setting_is_shown_with_its_source(tmp_path: Path) -> None:
    add_pair(tmp_path, "turbo", checkpoint="/models/turbo")
    file = tmp_path / "settings.yaml"
    file.write_text("max_queue: 9\n")
    shown = rows(describe(tmp_path, {"CHATTERBOX_CONFIG": str(file), "USE_TORCH_COMPILE": "1"}))
    assert shown["checkpoint"] == ["/models/turbo", "config.pbtxt: checkpoint"]
    assert shown["max_queue"] == ["9", f"{file}: max_queue"]
    assert shown["compile"] == ["True", "USE_TORCH_COMPILE"]
    assert shown["watermark"] == ["True", "default"]


def test_a_password_is_not_shown() -> None:
    environment = {"CHATTERBOX_VOICE_STORE": "postgresql+psycopg://me:secret@host/voices"}
    assert "secret" not in describe(REPOSITORY, environment)
    assert "me:***@host" in describe(REPOSITORY, environment)


@pytest.mark.parametrize(
    "store",
    [
        "postgresql://h/db?user=bob&password=hunter2",
        "postgresql://h/db?password=hunter2&password=hunter2",
        "postgresql+psycopg://bob:hunter2@h/db?PASSWORD=hunter2",
        "postgresql://h/db?sslpassword=hunter2&sslmode=require",
        "postgresql://h/db?oauth_client_secret=hunter2",
        "postgresql://h/db?scram_client_key=hunter2",
    ],
)
def test_a_secret_is_not_shown_wherever_it_stands_in_the_url(store: str) -> None:
    shown = describe(REPOSITORY, {"CHATTERBOX_VOICE_STORE": store})
    assert "hunter2" not in shown
    assert "@h/db" in shown or "//h/db" in shown


def test_what_is_no_secret_is_shown() -> None:
    store = "postgresql://bob@h/db?passfile=%2Fetc%2Fpass&sslmode=require&host=a&host=b"
    row = rows(describe(REPOSITORY, {"CHATTERBOX_VOICE_STORE": store}))["voice_store"][0]
    assert all(part in row for part in ("bob", "passfile=%2Fetc%2Fpass", "sslmode=require", "host=a&host=b"))


def test_the_key_of_the_voices_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2")
    for environment in ({"CHATTERBOX_VOICE_KEY": "hunter2"}, {"CHATTERBOX_VOICE_KEY_FILE": f"{tmp_path}/key"}):
        assert "hunter2" not in describe(REPOSITORY, environment)
    assert rows(describe(REPOSITORY, {"CHATTERBOX_VOICE_KEY": "hunter2"}))["voice_key"] == [
        "***",
        "CHATTERBOX_VOICE_KEY",
    ]
    assert "hunter2" not in repr(Config(voice_key="hunter2"))


def test_a_key_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for environment, message in (
        ({"CHATTERBOX_VOICE_KEY_FILE": f"{tmp_path}/none"}, "voice_key_file: .*none cannot be read"),
        ({"CHATTERBOX_VOICE_KEY_FILE": f"{tmp_path}/empty"}, "voice_key_file: .*empty is empty"),
        ({"CHATTERBOX_VOICE_KEY_FILE": "a", "CHATTERBOX_VOICE_KEY": "b"}, "exclude each other"),
        ({"CHATTERBOX_ALLOWED_ORIGINS": "example"}, "allowed_origins has 'example'"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(REPOSITORY, environment)


def test_a_configuration_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.pbtxt").write_text("input {")
    with pytest.raises(ConfigError, match=r"broken/config.pbtxt"):
        parameters_of(tmp_path)


def test_the_command_shows_the_settings_and_refuses_wrong_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("max_slots: 7\n")
    assert main(["--print-config", "--config", str(file), "--checkpoint", "tiny"]) == 0
    shown = rows(capsys.readouterr().out)
    assert shown["max_slots"][0] == "7"
    assert shown["checkpoint"] == ["tiny", "CHATTERBOX_CHECKPOINT"]
    file.write_text("max_slots: -7\n")
    for start in ([], ["--print-config"]):
        assert main([*start, "--config", str(file)]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line == "launcher: the model chatterbox: max_slots is -7; it must be between 0 and 1024"


def test_whoever_reads_the_settings_may_stop_early_and_foreign_names_are_told() -> None:
    command = [sys.executable, "-m", "chatterbox_engine.launcher.cli", "--print-config"]
    shown = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "MAX_WORKERS": "4"}
    )
    assert shown.stdout is not None
    shown.stdout.close()
    _, complaint = shown.communicate(timeout=60)
    assert shown.returncode == 0
    [line] = complaint.splitlines()
    assert line.startswith("launcher: MAX_WORKERS is ignored: ")


def test_of_other_peoples_models_nothing_is_asked(tmp_path: Path) -> None:
    add_pair(tmp_path, "turbo")
    for name, text in (("theirs", FOREIGN), ("newer", "field_of_a_newer_triton: 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(text)
    check(tmp_path, {})
    with pytest.raises(ConfigError, match="the model turbo: unknown setting CHATTERBOX_SLOTS"):
        check(tmp_path, {"CHATTERBOX_SLOTS": "7"})


@pytest.mark.parametrize("store", ["postgresql://me:secret@host:port/voices", "://secret"])
def test_a_database_whose_url_is_none_is_refused_without_its_password(store: str) -> None:
    with pytest.raises(ConfigError, match="voice_store is not the URL of a database") as caught:
        describe(REPOSITORY, {"CHATTERBOX_VOICE_STORE": store})
    assert "secret" not in str(caught.value)


def test_a_cache_that_cannot_be_written_to_is_named_with_who_may_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    who = f"by user {os.getuid()} of group {os.getgid()}"
    with pytest.raises(
        ConfigError, match=rf"CHATTERBOX_CACHE={file}/cache cannot be written to {who} \(Not a directory\)"
    ):
        check(REPOSITORY, {"CHATTERBOX_CACHE": f"{file}/cache"})
    check(REPOSITORY, {"CHATTERBOX_CACHE": str(tmp_path / "new" / "cache")})


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else_stops_the_start() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        os.seteuid(12345)
        try:
            with pytest.raises(ConfigError, match=r"by .* \(Permission denied\): give it to this user"):
                check(REPOSITORY, {"CHATTERBOX_CACHE": folder})
        finally:
            os.seteuid(0)
