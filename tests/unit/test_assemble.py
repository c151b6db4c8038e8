"""From settings to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatterbox_engine import assemble
from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.quantize import check_quantization

CPU = torch.device("cpu")


def test_compile_modes_lose_their_own_graphs_while_ours_are_on() -> None:
    graphs = Graphs(CPU, enabled=False)
    config = Config(compile=True, compile_mode="reduce-overhead")
    assert assemble.choose_compile_mode(config, graphs) == "reduce-overhead"
    graphs.enabled = True
    assert assemble.choose_compile_mode(config, graphs) == "default"
    assert assemble.choose_compile_mode(Config(), graphs) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float8_is_refused_where_the_device_lacks_it(dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"capability 8\.9 or more and bfloat16, not cpu and (float32|bfloat16)"):
        check_quantization("float8", CPU, dtype)
    check_quantization("int8", CPU, dtype)
    check_quantization("none", CPU, dtype)


def test_what_is_quantised_is_told() -> None:
    plain = assemble.optimizations(Config(), torch.float32, Graphs(CPU, enabled=False))
    assert assemble.optimizations(Config(quantization="int8"), torch.float32, Graphs(CPU, enabled=False)) == [
        *plain,
        "int8",
    ]


def test_s3gen_is_made_as_the_settings_say(tiny_path: Path, tmp_path: Path) -> None:
    settings = {"prompt_seconds": 2.0, "dtype": "float32", "voice_store": str(tmp_path / "voices.sqlite")}
    engine = assemble.build(Config(checkpoint=str(tiny_path), watermark=False, **settings))  # type: ignore[arg-type]
    assert engine._parts.vocoder._s3gen.prompt_tokens == 50  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_a_models_weights_counts_their_types(dtype: torch.dtype) -> None:
    model: Any = torch.nn.ParameterList([torch.empty(3, 5, dtype=dtype), torch.empty(2, dtype=dtype)])
    assert assemble.weight_bytes(model) == 17 * dtype.itemsize
