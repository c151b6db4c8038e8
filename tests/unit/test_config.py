"""Settings: where they come from, and what is refused."""

from __future__ import annotations

import pytest

from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError


def test_a_models_own_parameter_wins_over_the_environment() -> None:
    environment = {"CHATTERBOX_CHECKPOINT": "a", "CHATTERBOX_MAX_SLOTS": "3", "PATH": "/bin"}
    config = Config.load({"checkpoint": "b"}, environment)
    assert (config.checkpoint, config.max_slots) == ("b", 3)


def test_the_names_of_well_known_servers_keep_working() -> None:
    config = Config.load({}, {"USE_TORCH_COMPILE": "true", "TORCH_COMPILE_MODE": "max-autotune"})
    assert (config.compile, config.compile_mode) == (True, "max-autotune")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CHATTERBOX_MAX_SLOT": "3"}, "unknown setting CHATTERBOX_MAX_SLOT"),
        ({"CHATTERBOX_MAX_SLOTS": "three"}, "must be of type int"),
        ({"CHATTERBOX_MAX_SLOTS": "-1"}, "max_slots is -1"),
        ({"CHATTERBOX_WATERMARK": "maybe"}, "must be 1 or 0"),
        ({"CHATTERBOX_DTYPE": "float16"}, "dtype is 'float16'"),
        ({"TORCH_COMPILE_MODE": "fast"}, "compile_mode is 'fast'"),
        ({"CHATTERBOX_REQUEST_TIMEOUT": "nan"}, "request_timeout is nan"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.load({}, environment)


def test_an_unknown_parameter_of_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown parameter 'slots'"):
        Config.load({"slots": "3"}, {})


def test_settings_of_other_parts_are_left_alone() -> None:
    assert Config.load({}, {"CHATTERBOX_URL": "x", "CHATTERBOX_CACHE": "y"}) == Config()
