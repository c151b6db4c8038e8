"""The checks of documents' names and of lengths find what is wrong, and name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import sizes
from tools.docs import names


def test_a_file_and_a_function_that_are_too_long_are_found() -> None:
    function = "def long():\n" + "    pass\n" * 60
    assert list(sizes.findings(Path("a.py"), function)) == ["a.py:1: long has 61 lines, at most 60"]
    assert list(sizes.findings(Path("a.py"), "x = 1\n" * 401)) == ["a.py: 401 lines, at most 400"]
    for kernels in ("engine/chatterbox_engine/kernels/a.py", "engine/chatterbox_engine/t3/a_cuda.py"):
        assert not list(sizes.findings(Path(kernels), "x = 1\n" * 401))


@pytest.mark.parametrize(
    "name",
    [
        *("`t3/no_such.py`", "`no_such_folder/`", "`synthesis.engine.NO_SUCH_BYTES`", "`Engine.no_such`"),
        *("`no_such_name`", "`NoSuchName`", "`CHATTERBOX_NO_SUCH=1`", "`choose` in `t3/sampler.py`"),
        "`ResembleAI/no-such`",
    ],
)
def test_a_name_that_does_not_exist_is_found(name: str) -> None:
    assert names.missing(f"See {name}.\n```\n`no_such_block`\n```\n") == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("`t3/sampling.py`", "`.../voices`", "`*_cuda.py`", "`synthesis.engine.Engine`", "`Engine.submit`"),
        *(
            "`max_slots`",
            "`SynthesisRequest`",
            "`CHATTERBOX_MAX_SLOTS=1`",
            "`choose` in `t3/sampling.py`",
            "`pip install`",
            "`ResembleAI/chatterbox`",
        ),
    ],
)
def test_a_name_that_exists_is_not(name: str) -> None:
    assert names.missing(f"See {name}.") == []
