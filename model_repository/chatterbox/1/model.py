"""Triton model `chatterbox`: whole utterances. A thin adapter over chatterbox_engine: parse, submit, send.

It owns the engine, and serves the streaming front over a local socket. A copy of its folder is another model with its
own engine.
"""

from __future__ import annotations

import gc
import json
import os
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils

from chatterbox_engine import presets
from chatterbox_engine.config import Config
from chatterbox_engine.errors import RequestError
from chatterbox_engine.limits import lift_file_limit
from chatterbox_engine.metrics import TritonMetrics
from chatterbox_engine.origins import check_origin, parse_origins
from chatterbox_engine.serving import contract
from chatterbox_engine.serving.codec import Tensors
from chatterbox_engine.serving.instances import Instance, turn_to_load
from chatterbox_engine.serving.reply import CancellationWatcher, Reply, tensors_of
from chatterbox_engine.serving.request_log import RequestLog
from chatterbox_engine.serving.supervision import supervise
from chatterbox_engine.serving.wire import FOLDER_VARIABLE, Host, Outlet, socket_path
from chatterbox_engine.types import SynthesisChunk, SynthesisResult


class TritonPythonModel:
    """`execute` returns None at once; each request is answered through its response sender when its audio is ready, so
    that no request waits for the slowest of the batch that Triton formed."""

    def initialize(self, args: dict[str, str]) -> None:
        lift_file_limit()
        name, instance = args["model_name"], Instance.of(args)
        report = partial(_log, name if instance.count == 1 else f"{name} {instance.index}")
        self._host = _listen(name, instance)  # before anything slow: the front waits for its socket
        from chatterbox_engine import assemble, hardware  # imports torch, which takes seconds

        parameters = json.loads(args["model_config"])["parameters"]
        config = Config.load({name: entry["string_value"] for name, entry in parameters.items()})
        config = instance.settings(config, hardware.cores())
        self._allowed_origins = parse_origins(config.allowed_origins)
        self._log = RequestLog(pb_utils, args["model_name"], config.request_log)
        self._metrics = TritonMetrics(pb_utils.MetricFamily, name, instance.index)
        with turn_to_load(os.environ.get(FOLDER_VARIABLE)):
            self._engine = assemble.build(
                config, report=report, on_failure=_end_process, metrics=self._metrics, number=instance.index
            )
        presets.sampling(self._engine.family, config.preset)  # an invalid preset stops the start
        self._engine.start()
        self._terms = contract.Terms(
            max_text_chars=config.max_text_chars,
            max_seconds=config.max_seconds,
            family=self._engine.family,
            preset=config.preset,
        )
        self._metrics.start(self._engine.status, self._engine.about, contract.describe(self._terms))
        self._watcher = CancellationWatcher()
        if self._host is not None:
            self._host.serve(self._stream, lambda: self._engine.utterances)
        supervise(os.environ.get(FOLDER_VARIABLE), self._engine.drain)
        # These objects stay until the end; garbage collection that scans them would stop every thread for 0.2 s.
        gc.collect()
        gc.freeze()
        report("ready")

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            # Raising out of execute leaks the request's shared memory (triton server issue 7481): always answer.
            reply = Reply(pb_utils, request, self._log)
            try:
                check_origin(request.parameters(), self._allowed_origins)
                self._speak(reply, tensors_of(request))
            except Exception as error:
                reply.fail(self._refusal(error))

    def finalize(self) -> None:
        if self._host is not None:
            self._host.close()
        self._watcher.close()
        self._engine.close()
        self._metrics.close()

    def _speak(self, reply: Reply, tensors: Tensors) -> None:
        call = contract.parse(tensors, self._terms)
        if call.format == contract.TEXT:
            reply.send(contract.text_outputs(self._engine.read(call.request)))
            return
        number = self._engine.submit(call.request, partial(self._answer, reply, call.format))
        self._watcher.watch(reply, partial(self._engine.cancel, number))
        self._announce()

    def _answer(self, reply: Reply, audio_format: str, outcome: SynthesisResult | RequestError) -> None:
        """Called on the engine's sender thread."""
        if isinstance(outcome, RequestError):
            reply.fail(outcome)
        else:
            reply.send(contract.outputs(outcome, audio_format))
        self._announce()

    def _announce(self) -> None:
        """Tells the front what this engine has to do, so that streams go to the one with the fewest utterances."""
        if self._host is not None:
            self._host.announce()

    def _stream(self, tensors: Tensors, outlet: Outlet) -> Callable[[], None]:
        """Begins a stream for the front."""
        try:
            call = contract.parse_stream(tensors, self._terms)
            number = self._engine.stream(call.request, call.policy, partial(self._pass_on, outlet, call.format))
        except Exception as error:
            raise self._refusal(error) from error
        return partial(self._engine.cancel, number)

    def _pass_on(self, outlet: Outlet, audio_format: str, outcome: SynthesisChunk | RequestError) -> None:
        """Called on the engine's sender thread."""
        if isinstance(outcome, RequestError):
            outlet.fail(outcome)
        else:
            outlet.part(contract.chunk_outputs(outcome, audio_format), last=outcome.last)
        if isinstance(outcome, RequestError) or outcome.last:
            self._announce()

    def _refusal(self, error: Exception) -> RequestError:
        refusal = error if isinstance(error, RequestError) else RequestError(f"{type(error).__name__}: {error}")
        if refusal is not error:
            traceback.print_exception(error)
        self._metrics.failed(refusal)
        return refusal


def _listen(model: str, instance: Instance) -> Host | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    return Host(socket_path(model, folder, instance.index), instance.count) if folder else None


def _end_process(error: BaseException) -> None:
    """The engine is gone and every request answered; the launcher sees the process end and stops the server."""
    traceback.print_exception(error)
    os._exit(1)


def _log(model: str, line: str) -> None:
    pb_utils.Logger.log_info(f"{model}: {line}")
