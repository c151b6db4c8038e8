"""Each engine's settings, and where each value comes from: what `chatterbox-serve --print-config` shows, and what is
checked before the server starts."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from chatterbox_engine.config import Config, Setting, resolve
from chatterbox_engine.environment import CACHE_VARIABLE
from chatterbox_engine.errors import ConfigError

_HIDDEN = "***"
_SECRET = re.compile("pass(?!file)|secret|token|_key", re.IGNORECASE)
"""In the names of a database URL's parameters: `password`, `sslpassword`, `oauth_client_secret`, `scram_client_key`."""


def describe(repository: Path, environment: Mapping[str, str]) -> str:
    """A table of settings per model that owns an engine. Raises ConfigError where the server would not start."""
    tables = []
    for model, parameters in parameters_of(repository).items():
        given, config = _settings(model, parameters, environment)
        tables.append(f"{model}\n{_table(given, config)}")
    return "\n\n".join(tables)


def check(repository: Path, environment: Mapping[str, str]) -> None:
    """Raises ConfigError for settings with which an engine would not start: a model would say it among many lines. Of
    configurations that cannot be read Triton tells."""
    if folder := environment.get(CACHE_VARIABLE):
        _check_folder(folder)
    for model, parameters in parameters_of(repository, skip_unreadable=True).items():
        _, config = _settings(model, parameters, environment)
        _check_file(config.voice_store)


def parameters_of(repository: Path, *, skip_unreadable: bool = False) -> dict[str, dict[str, str]]:
    """The models of a repository that own an engine, by name, and the parameters in their configurations: those that
    answer with speech tokens and are not decoupled (the streaming front is)."""
    found = {}
    for path in sorted(repository.glob("*/config.pbtxt")):
        try:
            config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        except (OSError, ValueError, text_format.ParseError) as error:
            if skip_unreadable:
                continue
            raise ConfigError(f"{path}: {error}") from error
        speaks = any(tensor.name == "speech_tokens" for tensor in config.output)
        if speaks and not config.model_transaction_policy.decoupled:
            name = config.name or path.parent.name
            found[name] = {key: value.string_value for key, value in config.parameters.items()}
    return found


def _check_folder(folder: str) -> None:
    """The folder of what is kept must be one that this user may write to, as a volume of somebody else is not."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{CACHE_VARIABLE}={folder} cannot be written to by {_whoever()} ({error.strerror}): give it to this user, "
            "or run as one who may write there; the image's volume takes any user of group 0"
        ) from error


def _check_file(voice_store: str) -> None:
    file = Path(voice_store).expanduser()
    if "://" not in voice_store and file.exists() and not os.access(file, os.R_OK | os.W_OK):
        raise ConfigError(
            f"the voice store {file} belongs to user {file.stat().st_uid} and cannot be written to by {_whoever()}"
        )


def _whoever() -> str:
    return f"user {os.getuid()} of group {os.getgid()}"


def _settings(
    model: str, parameters: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[dict[str, Setting], Config]:
    try:
        given = resolve(parameters, environment)
        return given, Config(**{name: setting.value for name, setting in given.items()})
    except ConfigError as error:
        raise ConfigError(f"the model {model}: {error}") from error


def _table(given: Mapping[str, Setting], config: Config) -> str:
    rows = [("setting", "value", "from")]
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        rows.append((item.name, _shown(item.name, value), given[item.name].source if item.name in given else "default"))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {name:{widths[0]}}  {value:{widths[1]}}  {source}" for name, value, source in rows)


def _shown(name: str, value: Any) -> str:
    if name == "voice_key" and value:
        return _HIDDEN
    return _without_secrets(value) if name == "voice_store" else str(value)


def _without_secrets(store: str) -> str:
    if "://" not in store:
        return store
    try:
        url = make_url(store)
        secret = {name: _HIDDEN for name in url.query if _SECRET.search(name)}
        return url.update_query_dict(secret).render_as_string(hide_password=True)
    except (ValueError, ArgumentError) as error:  # which may repeat the password
        raise ConfigError("voice_store is not the URL of a database") from error
