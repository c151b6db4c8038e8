"""Settings: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatterbox_engine.config import Config, ignored, resolve
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
        ({"CHATTERBOX_PRESET": "grim"}, "preset is 'grim'"),
        ({"USE_TORCH_COMPILE": "1", "CHATTERBOX_COMPILE": "0"}, "contradict each other about compile"),
        ({"USE_OPTIMIZATIONS": "false", "CHATTERBOX_DTYPE": "bfloat16"}, "contradict each other about dtype"),
        ({"CHATTERBOX_CONFIG": "/nowhere.yaml"}, "/nowhere.yaml cannot be read"),
        ({"CHATTERBOX_MAX_SLOTS": "three"}, "must be of type int"),
        ({"CHATTERBOX_MAX_SLOTS": "-1"}, "max_slots is -1"),
        ({"CHATTERBOX_WATERMARK": "maybe"}, "must be 1 or 0"),
        ({"CHATTERBOX_DTYPE": "float64"}, "dtype is 'float64'"),
        ({"TORCH_COMPILE_MODE": "fast"}, "compile_mode is 'fast'"),
        ({"CHATTERBOX_REQUEST_TIMEOUT": "nan"}, "request_timeout is nan"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.load({}, environment)


def yaml_file(folder: Path, text: str) -> dict[str, str]:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return {"CHATTERBOX_CONFIG": str(path)}


def test_the_environment_wins_over_the_file_and_a_models_parameters_over_both(tmp_path: Path) -> None:
    environment = yaml_file(tmp_path, "max_slots: 4\nmax_queue: 5\nmax_prefills: 6\n")
    environment |= {"CHATTERBOX_MAX_QUEUE": "50", "CHATTERBOX_MAX_PREFILLS": "60"}
    found = resolve({"max_prefills": "7"}, environment)
    assert {name: (setting.value, setting.source) for name, setting in found.items()} == {
        "max_slots": (4, f"{tmp_path}/settings.yaml: max_slots"),
        "max_queue": (50, "CHATTERBOX_MAX_QUEUE"),
        "max_prefills": (7, "config.pbtxt: max_prefills"),
    }


def test_a_file_holds_every_type(tmp_path: Path) -> None:
    text = "checkpoint: /models/grpo\nwatermark: false\nmax_seconds: 20\nvoice_cache_mb: 9\ncompile: on\n"
    config = Config.load({}, yaml_file(tmp_path, text))
    assert (config.checkpoint, config.watermark, config.compile) == ("/models/grpo", False, True)
    assert (config.max_seconds, config.voice_cache_mb) == (20.0, 9)


def test_optimisations_off_is_the_plain_path_and_on_changes_nothing(tmp_path: Path) -> None:
    plain = Config.load({}, yaml_file(tmp_path, "use_optimizations: false\n"))
    assert (plain.cuda_graphs, plain.compile, plain.dtype) == (False, False, "float32")
    assert plain.quantization == "none"
    assert Config.load({}, yaml_file(tmp_path, "use_optimizations: true\n")) == Config()
    again = Config.load({"dtype": "bfloat16"}, {"USE_OPTIMIZATIONS": "0"})  # a later source may turn one on again
    assert (again.cuda_graphs, again.dtype) == (False, "bfloat16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slots: 3", "unknown setting .*settings.yaml: slots"),
        ("max_slots: many", "max_slots is 'many'; it must be of type int"),
        ("max_slots: [1]", "must be of type int"),
        ("- max_slots", "must hold lines of the form"),
        ("", "must hold lines of the form"),
        ("a: b: c", "cannot be read"),
        ("use_optimizations: false\ncompile: true", "contradict each other about compile"),
        ("use_optimizations: false\nquantization: int8", "contradict each other about quantization"),
        ("quantization: int4", "quantization is 'int4'; it must be one of none, int8, float8"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.load({}, yaml_file(tmp_path, text))


def test_an_unknown_parameter_of_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting config\.pbtxt: slots"):
        Config.load({"slots": "3"}, {})


def test_settings_of_other_parts_are_left_alone() -> None:
    names = ("CHATTERBOX_URL", "CHATTERBOX_GRPC_URL", "CHATTERBOX_GATEWAY_KEYS", "CHATTERBOX_CACHE")
    assert Config.load({}, dict.fromkeys(names, "x")) == Config()


def test_what_other_servers_call_half_precision_is_this_ones_dtype_where_it_means_something() -> None:
    assert Config.load({}, {"USE_FP16": "false"}).dtype == "float32"
    assert Config.load({}, {"USE_FP16": "true"}).dtype == "float16"
    with pytest.raises(ConfigError, match="USE_FP16 contradict each other about dtype"):
        Config.load({}, {"CHATTERBOX_DTYPE": "bfloat16", "USE_FP16": "0"})


def test_a_variable_of_other_servers_that_changes_nothing_is_named() -> None:
    lines = ignored({"USE_FP16": "1", "MAX_WORKERS": "0", "PATH": "/bin"})
    assert [line.partition(" is ignored: ")[0] for line in lines] == ["MAX_WORKERS"]
    assert not ignored({"USE_FP16": "0", "USE_TORCH_COMPILE": "1"})
