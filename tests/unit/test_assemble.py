"""From settings to an engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chatterbox_engine import assemble
from chatterbox_engine.checkpoint.dims import FlashDims, LlamaDims, T3Dims
from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.kernels.linear import Projection
from chatterbox_engine.t3.quantize import check_quantization
from tests.conftest import CheckpointOf

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


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, torch.float32),
        ({}, torch.float16),
        ({"quantization": "int8"}, torch.float32),
        ({"compile": True}, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["tiny", "tiny-turbo", "tiny-flash"])
def test_the_products_that_are_told_are_those_that_t3_computes(
    name: str, settings: dict[str, Any], dtype: torch.dtype, checkpoint_of: CheckpointOf
) -> None:
    checkpoint, config = checkpoint_of(name), Config(max_slots=2, **settings)
    model = assemble.load_t3(config, checkpoint, CPU, dtype, print)
    if config.compile and checkpoint.family.in_blocks:
        with pytest.raises(ConfigError, match="compile is on, which Chatterbox Flash does not support"):
            assemble.make_runner(config, checkpoint, model, print)
        return
    told = assemble.describe(config, checkpoint, assemble.make_runner(config, checkpoint, model, print))
    blocks = list(model.layers)
    products = [product for block in blocks for product in vars(block).values() if isinstance(product, Projection)]
    assert len(products) == 4 * len(blocks)
    used = {
        "packed_projections": all(product.weight.is_mkldnn for product in products),
        "fused_projections": not config.compile and all(product._product is not None for product in products),
    }
    assert {name: name in told["optimizations"] for name in used} == used
    assert ("int8" in told["optimizations"]) == (config.quantization == "int8")


@pytest.mark.parametrize(
    ("dims", "dtype", "told"),
    [
        (LlamaDims(), torch.bfloat16, True),
        (LlamaDims(), torch.float16, True),
        (LlamaDims(), torch.float32, False),  # torch's own operators multiply it
        (FlashDims(), torch.bfloat16, False),  # and rows that are many
    ],
)
def test_fused_products_are_told_of_a_gpu_where_they_are(dims: T3Dims, dtype: torch.dtype, told: bool) -> None:
    model: Any = SimpleNamespace(dims=dims, dtype=dtype, device=torch.device("cuda"))
    active = assemble.optimizations(Config(), model, Graphs(CPU, enabled=False))
    assert ("fused_projections" in active) == told
    assert "packed_projections" not in active


def test_s3gen_is_made_as_the_settings_say(tiny_path: Path, tmp_path: Path) -> None:
    settings = {"prompt_seconds": 2.0, "dtype": "float32", "voice_store": str(tmp_path / "voices.sqlite")}
    engine = assemble.build(Config(checkpoint=str(tiny_path), watermark=False, **settings))  # type: ignore[arg-type]
    assert engine._parts.vocoder._s3gen.prompt_tokens == 50  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_a_models_weights_counts_their_types(dtype: torch.dtype) -> None:
    model: Any = torch.nn.ParameterList([torch.empty(3, 5, dtype=dtype), torch.empty(2, dtype=dtype)])
    assert assemble.weight_bytes(model) == 17 * dtype.itemsize
