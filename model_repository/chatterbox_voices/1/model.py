"""Triton model `chatterbox_voices`: a thin adapter over chatterbox_engine.serving.voice_admin."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from chatterbox_engine.config import Config
from chatterbox_engine.errors import RequestError
from chatterbox_engine.limits import lift_file_limit
from chatterbox_engine.origins import check_origin, parse_origins
from chatterbox_engine.serving.reply import Reply, tensors_of
from chatterbox_engine.serving.request_log import RequestLog
from chatterbox_engine.serving.supervision import supervise
from chatterbox_engine.serving.voice_admin import VoiceAdmin


class TritonPythonModel:
    """Answers one request after the other; what it waits for is the database."""

    def initialize(self, args: dict[str, str]) -> None:
        lift_file_limit()
        parameters = json.loads(args["model_config"])["parameters"]
        config = Config.load({name: entry["string_value"] for name, entry in parameters.items()})
        self._admin = VoiceAdmin.of(config)
        self._allowed_origins = parse_origins(config.allowed_origins)
        self._log = RequestLog(pb_utils, args["model_name"], config.request_log)
        supervise()

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            # Raising out of execute leaks the request's shared memory (triton server issue 7481): always answer.
            reply = Reply(pb_utils, request, self._log)
            try:
                check_origin(request.parameters(), self._allowed_origins)
                reply.send(self._admin.handle(tensors_of(request)))
            except RequestError as error:
                reply.fail(error)
            except Exception as error:
                traceback.print_exc()
                reply.fail(RequestError(f"{type(error).__name__}: {error}"))

    def finalize(self) -> None:
        self._admin.close()
