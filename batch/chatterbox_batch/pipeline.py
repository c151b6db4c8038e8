"""Ray Data: one task reads, actors speak, each with many parts at once; a part is a block.

    read (streamed) --> repartition (a part each) --> actors (threads) --> records to the driver

The executor streams and holds back what reads too fast, so memory does not grow with the input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError

from chatterbox_batch.parts import Part
from chatterbox_batch.records import Record, Records
from chatterbox_batch.worker import Worker, join
from chatterbox_gateway.output import Output

ATTEMPTS = 4
"""How often a part is given to an actor, where actors die."""

RayFailed = RayError
"""What Ray raises when no actor can be started."""

_READ_ROWS = 64
"""Parts that the reader hands on at once."""

_ARROW = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "float | None": pa.float64()}


def _schema(of: type[Any]) -> pa.Schema:
    return pa.schema({field.name: _ARROW[str(field.type)] for field in dataclasses.fields(of)})


@dataclass(frozen=True)
class Resources:
    """What speaks."""

    actors: int | None = None
    """None: one per GPU of the cluster, or one."""
    concurrency: int = 32
    """Parts that an actor speaks at once."""
    own_engine: bool = True
    """Each actor takes a GPU, where there is one."""


@contextlib.contextmanager
def cluster(address: str | None, resources: Resources) -> Iterator[Cluster]:
    """A Ray cluster for one run: that at an address, or one of this machine. Raises ConnectionError when there is none
    at the address."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        address=address or "local",  # else Ray would join a cluster that happens to run here
        num_cpus=None if address else max(os.cpu_count() or 1, 2),  # one to read beside one that speaks
        include_dashboard=None if address else False,
        logging_level="error",
        log_to_driver=False,
    )
    try:
        yield Cluster(resources)
    finally:
        ray.shutdown()


class Cluster:
    """A `run.Executor` on Ray. Belongs to one thread."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def speak(self, pending: Iterable[Part], make_worker: Callable[[], Worker]) -> Iterator[Record]:
        """See `Executor.speak`. Raises RayError when no actor can be started."""
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # a part whose actors died; `run` makes a failure of it
        gpus = int(ray.cluster_resources().get("GPU", 0)) if self._resources.own_engine else 0
        count = self._resources.actors or max(gpus, 1)
        actors = ActorPoolStrategy(
            size=count,
            max_concurrent_calls_per_actor=self._resources.concurrency,
            enable_true_multi_threading=True,
        )
        parts = ray.data.read_datasource(_Parts(pending), override_num_blocks=1)
        spoken = parts.repartition(target_num_rows_per_block=1).map_batches(
            _Actor,
            fn_constructor_args=(make_worker,),
            compute=actors,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_cores(count) if self._resources.own_engine and not gpus else 0,
            num_gpus=1 if gpus else None,
            ray_remote_args_fn=lambda: {"max_task_retries": ATTEMPTS - 1},
        )
        for batch in spoken.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from (Record(**row) for row in batch.to_pylist())

    def join(self, records: Records, output: Output, parts: Sequence[Record]) -> Future[Record]:
        """See `Executor.join`. Joins take no resources of their own: the actors may have them all."""
        future: Future[Record] = _join.remote(records, output, parts).future()
        return future


def _cores(actors: int) -> int:
    """Cores for each engine on CPUs, which Ray makes its number of threads: those of the smallest node, less one that
    reads, shared by the actors of a node."""
    nodes = [cores for node in ray.nodes() if node["Alive"] and (cores := node["Resources"].get("CPU", 0)) >= 1]
    each = -(-actors // max(len(nodes), 1))
    return max(1, int(min(nodes, default=1) - 1) // each)


class _Actor:
    """Ray Data's callable of an actor."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._worker = make_worker()

    def __call__(self, parts: pa.Table) -> pa.Table:
        records = [dataclasses.asdict(self._worker.speak(Part(**row))) for row in parts.to_pylist()]
        return pa.Table.from_pylist(records, _schema(Record))


class _Parts(Datasource):  # type: ignore[misc]
    """The parts of a run, read in one task."""

    def __init__(self, pending: Iterable[Part]) -> None:
        super().__init__()
        self._pending = pending

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(self, *_sizes: Any, **_limits: Any) -> list[ReadTask]:
        """One task, whatever the parallelism: texts are read faster than they are spoken."""
        pending = self._pending
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(lambda: _blocks(pending), metadata, schema=_schema(Part))]


def _blocks(pending: Iterable[Part]) -> Iterator[pa.Table]:
    parts = iter(pending)
    while rows := [dataclasses.asdict(part) for part in itertools.islice(parts, _READ_ROWS)]:
        yield pa.Table.from_pylist(rows, _schema(Part))


@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")  # type: ignore[untyped-decorator, unused-ignore]
def _join(records: Records, output: Output, parts: Sequence[Record]) -> Record:
    return join(records, output, parts)
