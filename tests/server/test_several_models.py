"""English and Turbo side by side in one server, whose model repository is made by the commands of docs/models.md."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_client import InvalidRequest
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_engine.launcher.settings import parameters_of
from tests.clips import encoded, tone
from tests.conftest import CheckpointOf
from tests.documents import blocks, page, section
from tests.server.conftest import client_of
from tests.server.pages import settled_page

pytestmark = [pytest.mark.server, pytest.mark.full]  # two engines and two servers beside: half a minute

ROOT = Path(__file__).parents[2]
(COMMANDS,) = (
    block.code for block in blocks(section(page("docs/models.md"), "Several in one server")) if block.language == "bash"
)
LINE = "Side by side in one server."
SHORT: dict[str, Any] = {"max_seconds": 1.0}
FAMILIES = {"chatterbox": "english", "turbo": "turbo"}


@pytest.fixture(scope="module")
def both(
    tiny_path: Path, checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """The server of the page's section, with tiny checkpoints."""
    folder = tmp_path_factory.mktemp("several")
    shutil.copytree(
        ROOT / "model_repository", folder / "model_repository", ignore=shutil.ignore_patterns("__pycache__")
    )
    commands, start = COMMANDS.rstrip("\n").rsplit("\n", 1)
    assert start == ".venv/bin/chatterbox-serve --model-repository models"
    turbo = str(checkpoint_of("tiny-turbo").path)
    assert "ResembleAI/chatterbox-turbo" in commands
    subprocess.run(["bash", "-ec", commands.replace("ResembleAI/chatterbox-turbo", turbo)], cwd=folder, check=True)
    assert parameters_of(folder / "models") == {"chatterbox": {}, "turbo": {"checkpoint": turbo}}
    environment = {
        "CHATTERBOX_CHECKPOINT": str(tiny_path),
        "CHATTERBOX_VOICE_STORE": str(folder / "voices.sqlite"),
        "CHATTERBOX_MAX_SLOTS": "4",
    }
    repository = folder / "models"
    options = ServerOptions(model_repository=repository, environment=environment, log=folder / "triton.log")
    with TritonServer(options) as server:
        yield server


def joined(chunks: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([chunk.speech_tokens for chunk in chunks])


def test_each_answers_and_streams_with_its_own_checkpoint(
    both: TritonServer, server: TritonServer, server_of: Callable[[str], TritonServer]
) -> None:
    alone = {
        "chatterbox": partial(client_of, server),
        "turbo": partial(client_of, server_of("tiny-turbo"), model="tiny-turbo"),
    }
    for model, family in FAMILIES.items():
        with (
            client_of(both, "http", model=model) as unary,
            client_of(both, model=model) as streams,
            alone[model]() as other,
        ):
            whole = unary.speak(LINE, seed=7, **SHORT)
            chunks = list(streams.stream(LINE, seed=7, **SHORT))
            expected = other.speak(LINE, seed=7, **SHORT)
        assert whole.stats["family"] == chunks[-1].stats["family"] == family
        assert len(chunks) > 1
        np.testing.assert_array_equal(whole.speech_tokens, expected.speech_tokens)
        np.testing.assert_array_equal(joined(chunks), expected.speech_tokens)
        difference = np.abs(whole.samples - expected.samples).max()
        assert difference < 1e-4, f"{model}: {difference:.2e}"


def test_each_takes_its_own_inputs(both: TritonServer) -> None:
    for model, refused in (("chatterbox", {"top_k": 5}), ("turbo", {"cfg_weight": 0.5})):
        with client_of(both, model=model) as client, pytest.raises(InvalidRequest, match="has no effect"):
            client.speak(LINE, **refused)


def test_requests_to_both_at_once_each_equal_the_same_request_alone(both: TritonServer) -> None:
    def speak(number: int) -> np.ndarray[Any, Any]:
        with client_of(both, model=("chatterbox", "turbo")[number % 2]) as client:
            if number % 4 < 2:
                return client.speak(LINE, seed=number, **SHORT).speech_tokens
            return joined(client.stream(LINE, seed=number, **SHORT))

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(speak, range(8)))
    for number, tokens in enumerate(together):
        np.testing.assert_array_equal(tokens, speak(number), err_msg=f"request {number}")


def test_a_voice_of_one_is_not_taken_for_the_other_s(both: TritonServer) -> None:
    with client_of(both) as english, client_of(both, model="turbo") as turbo:
        english.voices.add("both", encoded(tone(6.0, pitch=150)))  # Turbo wants five seconds
        first = english.speak(LINE, voice="both", seed=3, **SHORT)
        assert first.stats["voice_from"] == "encoded"
        other = turbo.speak(LINE, voice="both", seed=3, **SHORT)
        assert other.stats["voice_from"] == "encoded"  # and not what English has left in the store they share
        for client, before in ((english, first), (turbo, other)):
            again = client.speak(LINE, voice="both", seed=3, **SHORT)
            assert again.stats["voice_from"] == "memory"
            np.testing.assert_array_equal(again.speech_tokens, before.speech_tokens)
            default = client.speak(LINE, seed=3, **SHORT)
            assert default.speech_tokens.tolist() != before.speech_tokens.tolist()
        english.voices.delete("both")


def test_the_page_counts_each_by_its_own_label(both: TritonServer) -> None:
    before = settled_page(both)
    tokens = {}
    for model, answers in (("chatterbox", 2), ("turbo", 3)):
        with client_of(both, model=model) as client:
            tokens[model] = sum(len(client.speak(LINE, seed=seed, **SHORT).speech_tokens) for seed in range(answers))
    page = settled_page(both)

    def grown(name: str, model: str) -> float:
        return page.total(name, model=model) - before.total(name, model=model)

    assert [grown("chatterbox_requests_total", model) for model in FAMILIES] == [2, 3]
    for model, family in FAMILIES.items():
        assert grown("chatterbox_speech_tokens_total", model) == tokens[model]
        assert page.total("chatterbox_info", model=model, family=family) == 1
        assert page.total("chatterbox_slots_free", model=model) == 4
    assert page.total("chatterbox_info") == 2
