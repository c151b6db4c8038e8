"""What `chatterbox-serve --print-config` shows: each engine's settings, and where each value comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from sqlalchemy.engine import make_url
from tritonclient.grpc.model_config_pb2 import ModelConfig

from chatterbox_engine.config import Config, resolve
from chatterbox_engine.errors import ConfigError


def describe(repository: Path, environment: Mapping[str, str]) -> str:
    """A table of settings per model that owns an engine. Raises ConfigError where the server would not start."""
    found = sorted(parameters_of(repository).items())
    return "\n\n".join(f"{model}\n{_table(parameters, environment)}" for model, parameters in found)


def parameters_of(repository: Path) -> dict[str, dict[str, str]]:
    """The models of a repository that own an engine, and the parameters in their configurations: those that take a text
    and are not decoupled (the streaming front is)."""
    found = {}
    for path in repository.glob("*/config.pbtxt"):
        try:
            config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        except (OSError, ValueError, text_format.ParseError) as error:
            raise ConfigError(f"{path}: {error}") from error
        speaks = any(tensor.name == "text" for tensor in config.input)
        if speaks and not config.model_transaction_policy.decoupled:
            name = config.name or path.parent.name
            found[name] = {key: value.string_value for key, value in config.parameters.items()}
    return found


def _table(parameters: Mapping[str, str], environment: Mapping[str, str]) -> str:
    given = resolve(parameters, environment)
    config = Config(**{name: setting.value for name, setting in given.items()})
    rows = [("setting", "value", "from")]
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        shown = _without_password(value) if item.name == "voice_store" else str(value)
        rows.append((item.name, shown, given[item.name].source if item.name in given else "default"))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {name:{widths[0]}}  {value:{widths[1]}}  {source}" for name, value, source in rows)


def _without_password(store: str) -> str:
    return make_url(store).render_as_string(hide_password=True) if "://" in store else store
