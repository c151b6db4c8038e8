"""Several engines of a model: what each is told, where a stream goes, and how the launcher asks Triton for them."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError, InvalidRequest, Unavailable
from chatterbox_engine.launcher.instances import arranged, gpu_count
from chatterbox_engine.serving.channel import Channel
from chatterbox_engine.serving.codec import Load, Ready, Tensors
from chatterbox_engine.serving.instances import Instance, turn_to_load
from chatterbox_engine.serving.links import Links
from chatterbox_engine.serving.wire import Host, Outlet, _Session, socket_path

WAIT = 20.0
REPOSITORY = Path(__file__).parents[2] / "model_repository"
INPUTS: Tensors = {"text": np.array([[b"Hello"]], dtype=object)}


def arguments(groups: list[dict[str, Any]], name: str, gpu: int | None = None) -> dict[str, str]:
    """Triton's, of one instance."""
    return {
        "model_config": json.dumps({"instance_group": groups}),
        "model_instance_name": name,
        "model_instance_kind": "CPU" if gpu is None else "GPU",
        "model_instance_device_id": str(gpu or 0),
    }


def test_instances_on_the_cpu_are_told_apart_by_their_names() -> None:
    groups = [{"name": "chatterbox_0", "kind": "KIND_CPU", "count": 2, "gpus": []}]
    assert Instance.of(arguments(groups, "chatterbox_0_1")) == Instance(1, 2)
    groups[0]["count"] = 1
    for name in ("chatterbox_0_0", "chatterbox_0"):  # Triton 2.51, and an older one
        assert Instance.of(arguments(groups, name)) == Instance(0, 1)


def test_instances_on_gpus_have_one_name_and_are_told_apart_by_their_gpu() -> None:
    groups = [{"name": "chatterbox_0", "kind": "KIND_GPU", "count": 1, "gpus": [0, 2]}]
    assert Instance.of(arguments(groups, "chatterbox_0_0", 2)) == Instance(1, 2, gpu=2)
    groups.append({"name": "chatterbox_1", "kind": "KIND_GPU", "count": 2, "gpus": [3]})
    assert Instance.of(arguments(groups, "chatterbox_1_1", 3)) == Instance(3, 4, gpu=3)


def test_an_instance_computes_on_the_gpu_that_it_is_given() -> None:
    assert Instance(1, 2, gpu=3).settings(Config(), 16).device == "cuda:3"
    assert Instance(1, 2, gpu=3).settings(Config(device="cuda:3"), 16).device == "cuda:3"
    with pytest.raises(ConfigError, match="device is 'cpu', but instance_group puts this instance on cuda:3"):
        Instance(1, 2, gpu=3).settings(Config(device="cpu"), 16)


def test_instances_on_the_cpu_share_its_cores() -> None:
    config = Instance(1, 4).settings(Config(), 16)
    assert (config.device, config.cpu_threads) == ("cpu", 2)
    assert Instance(1, 4).settings(Config(cpu_threads=5), 16).cpu_threads == 5
    assert Instance(0, 4).settings(Config(), 2).cpu_threads == 1
    assert Instance().settings(Config(), 16) == Config(), "one instance has what the settings say"


LOADER = """
import sys
from chatterbox_engine.serving.instances import turn_to_load
with turn_to_load(sys.argv[1]):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_weights_are_loaded_by_one_process_at_a_time(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOADER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"in\n"
        loads = threading.Event()

        def load() -> None:
            with turn_to_load(str(tmp_path)):
                loads.set()

        thread = threading.Thread(target=load)
        thread.start()
        assert not loads.is_set()
        other.kill()  # the lock of a process that dies is free
        assert loads.wait(WAIT)
        thread.join()
    with turn_to_load(None):
        pass


class Engine:
    """Takes streams and counts what it has to do: they, and `others`, which come by another way."""

    def __init__(self) -> None:
        self.others = 0
        self.outlets: list[Outlet] = []
        self.opened: queue.SimpleQueue[Outlet] = queue.SimpleQueue()
        self.cancelled: queue.SimpleQueue[Outlet] = queue.SimpleQueue()

    def load(self) -> int:
        return self.others + len(self.outlets)

    def start(self, tensors: Tensors, outlet: Outlet) -> Callable[[], None]:
        if tensors["text"].item() == b"no":
            raise InvalidRequest("no")
        self.outlets.append(outlet)
        self.opened.put(outlet)
        return lambda: self.cancelled.put(outlet)


@contextmanager
def engines(count: int) -> Iterator[tuple[list[Engine], list[Host], Links]]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = partial(socket_path, "model", folder)
        made = [Engine() for _ in range(count)]
        hosts = [Host(path(index), count) for index in range(count)]
        for engine, host in zip(made, hosts, strict=True):
            host.serve(engine.start, engine.load)
            stack.callback(host.close)
        links = Links(path, report=lambda _line: None)
        stack.callback(links.close)
        yield made, hosts, links


def drained(links: Links) -> None:
    """All messages that the engines have sent are read."""
    for link in links._links:
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        link.open({"text": np.array([[b"no"]], dtype=object)}, messages.put)
        messages.get(timeout=WAIT)


def test_streams_opened_at_once_are_dealt_out_evenly() -> None:
    with engines(3) as (made, _, links):
        for _ in range(12):
            links.open(INPUTS, lambda _message: None)
        for engine in made:
            for _ in range(4):
                engine.opened.get(timeout=WAIT)
        assert [len(engine.outlets) for engine in made] == [4, 4, 4]


def test_a_stream_goes_to_the_engine_with_the_fewest_utterances() -> None:
    with engines(2) as (made, hosts, links):
        made[0].others = 5
        hosts[0].announce()
        drained(links)
        for _ in range(4):
            links.open(INPUTS, lambda _message: None)
            made[1].opened.get(timeout=WAIT)
        made[0].others = 0
        hosts[0].announce()
        drained(links)
        links.open(INPUTS, lambda _message: None)
        made[0].opened.get(timeout=WAIT)


def test_a_front_hears_first_that_the_engine_is_ready() -> None:
    front, peer = socket.socketpair()
    with front, peer:
        engine = Engine()
        session = _Session(peer, engine.start, engine.load, 2)
        session.announce()  # a whole request ends while the front connects
        thread = threading.Thread(target=session.run)
        thread.start()
        channel = Channel(front)
        assert channel.receive() == Ready(2)
        assert channel.receive() == Load(0, 0)
        channel.close()
        thread.join(WAIT)
        assert not thread.is_alive()


def test_a_stream_is_cancelled_at_its_engine() -> None:
    with engines(2) as (made, _, links):
        links.open(INPUTS, lambda _message: None)
        cancel = links.open(INPUTS, lambda _message: None)
        first, second = (engine.opened.get(timeout=WAIT) for engine in made)
        cancel()
        assert made[1].cancelled.get(timeout=WAIT) is second
        assert first in made[0].outlets


def test_streams_go_to_the_engines_that_are_there() -> None:
    with engines(2) as (made, hosts, links):
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        links.open(INPUTS, messages.put)
        hosts[0].close()
        messages.get(timeout=WAIT)
        for _ in range(3):
            links.open(INPUTS, messages.put)
            made[1].opened.get(timeout=WAIT)
        hosts[1].close()
        for _ in range(3):
            messages.get(timeout=WAIT)
        with pytest.raises(Unavailable, match="not loaded"):
            links.open(INPUTS, messages.put)


def test_the_front_is_drained_once_no_engine_has_a_stream() -> None:
    with engines(2) as (made, _, links):
        for _ in range(2):
            links.open(INPUTS, lambda _message: None)
        outlets = [engine.opened.get(timeout=WAIT) for engine in made]
        done: queue.SimpleQueue[bool] = queue.SimpleQueue()
        links.drain(1.0, lambda: done.put(True))
        outlets[0].part({}, last=True)
        drained(links)
        assert done.empty()
        outlets[1].part({}, last=True)
        assert done.get(timeout=WAIT)


def groups_of(repository: Path, model: str = "chatterbox") -> list[ModelInstanceGroup]:
    config = text_format.Parse((repository / model / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
    return list(config.instance_group)


def test_a_copy_of_the_repository_has_the_instances_that_are_asked_for(tmp_path: Path) -> None:
    for wanted, group in {
        "gpu": ModelInstanceGroup(kind=ModelInstanceGroup.KIND_GPU, count=1),
        "gpu:0,2": ModelInstanceGroup(kind=ModelInstanceGroup.KIND_GPU, count=1, gpus=[0, 2]),
        "cpu:3": ModelInstanceGroup(kind=ModelInstanceGroup.KIND_CPU, count=3),
    }.items():
        copy = arranged(REPOSITORY, tmp_path / wanted.replace(":", "-"), wanted, {})
        assert groups_of(copy) == [group]
        for model in ("chatterbox_stream", "chatterbox_voices"):
            assert (copy / model).resolve() == REPOSITORY / model
        assert (copy / "chatterbox" / "1").resolve() == REPOSITORY / "chatterbox" / "1"


def test_gpus_are_those_that_the_container_has_and_the_variable_leaves(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpu_count({}, tmp_path) == 3
    assert gpu_count({"CUDA_VISIBLE_DEVICES": "0, 1"}, tmp_path) == 2
    assert gpu_count({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0


def test_several_gpus_are_all_used_unless_somebody_chose(tmp_path: Path) -> None:
    devices = tmp_path / "dev"
    devices.mkdir()
    for number in range(2):
        (devices / f"nvidia{number}").touch()

    def auto(name: str, **environment: str) -> list[ModelInstanceGroup]:
        return groups_of(arranged(REPOSITORY, tmp_path / name, "auto", environment, devices=devices))

    all_gpus, one = ModelInstanceGroup(kind=ModelInstanceGroup.KIND_GPU, count=1), groups_of(REPOSITORY)
    assert auto("all") == [all_gpus]
    assert auto("chosen", CHATTERBOX_DEVICE="cuda:1") == one
    assert auto("single", CUDA_VISIBLE_DEVICES="1") == one
    assert not (tmp_path / "chosen").exists(), "the repository itself is served"


@pytest.mark.parametrize("wanted", ["2", "gpu:", "gpu:a", "cpu", "cpu:0", "gpu:1,1"])
def test_other_words_for_instances_are_refused(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"CHATTERBOX_INSTANCES is '{wanted}'"):
        arranged(REPOSITORY, tmp_path / "copy", wanted, dict(os.environ))
