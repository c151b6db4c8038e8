"""Triton model `chatterbox_stream`: utterances chunk by chunk. A thin front, without torch, of the model that owns the
engine, which it reaches over a local socket: `X_stream` is the front of `X`."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils

from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError, RequestError
from chatterbox_engine.limits import lift_file_limit
from chatterbox_engine.origins import check_origin, parse_origins
from chatterbox_engine.serving.codec import Failed, Part
from chatterbox_engine.serving.links import Links
from chatterbox_engine.serving.reply import CancellationWatcher, Reply, tensors_of
from chatterbox_engine.serving.request_log import RequestLog
from chatterbox_engine.serving.supervision import supervise
from chatterbox_engine.serving.wire import FOLDER_VARIABLE, engine_of, socket_path


class TritonPythonModel:
    """`execute` forwards requests and returns; the socket's thread sends the responses."""

    def initialize(self, args: dict[str, str]) -> None:
        lift_file_limit()
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder:
            raise ConfigError(f"{FOLDER_VARIABLE} is not set: start the server with chatterbox-serve, or make a folder")
        parameters = json.loads(args["model_config"])["parameters"]
        config = Config.load({name: entry["string_value"] for name, entry in parameters.items()})
        self._allowed_origins = parse_origins(config.allowed_origins)
        self._log = RequestLog(pb_utils, args["model_name"], config.request_log)
        name = args["model_name"]
        report = partial(_log, name)
        self._links = Links(partial(socket_path, engine_of(name), folder), report=report)
        self._watcher = CancellationWatcher()
        supervise(folder, self._links.drain)
        report("ready")

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            # Raising out of execute leaks the request's shared memory (triton server issue 7481): always answer.
            reply = Reply(pb_utils, request, self._log, stream=True)
            try:
                check_origin(request.parameters(), self._allowed_origins)
                cancel = self._links.open(tensors_of(request), partial(_answer, reply))
            except RequestError as error:
                reply.fail(error)
            except Exception as error:
                traceback.print_exc()
                reply.fail(RequestError(f"{type(error).__name__}: {error}"))
            else:
                self._watcher.watch(reply, cancel)

    def finalize(self) -> None:
        self._watcher.close()
        self._links.close()


def _answer(reply: Reply, message: Part | Failed) -> None:
    if isinstance(message, Failed):
        reply.fail(message.error)
    else:
        reply.send(message.tensors, last=message.last)


def _log(model: str, line: str) -> None:
    pb_utils.Logger.log_info(f"{model}: {line}")
