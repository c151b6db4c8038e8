"""Triton model `chatterbox_voices`: a thin adapter over chatterbox_engine.voice_admin."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from chatterbox_engine.config import Config
from chatterbox_engine.errors import InvalidRequest, NotFound, RequestError, Unavailable
from chatterbox_engine.voice_admin import VoiceAdmin


class TritonPythonModel:
    """Answers at once; what it waits for is the database."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        config = Config.load({name: entry["string_value"] for name, entry in parameters.items()})
        self._admin = VoiceAdmin.of(config)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self._admin.close()

    def _answer(self, request: Any) -> Any:
        # Raising out of execute leaks the request's shared memory (triton server issue 7481): always answer.
        try:
            tensors = self._admin.handle({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        except RequestError as error:
            return _failure(str(error), _code(error))
        except Exception as error:
            traceback.print_exc()
            return _failure(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items()])


def _failure(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))


def _code(error: RequestError) -> Any:
    codes = pb_utils.TritonError
    match error:
        case InvalidRequest():
            return codes.INVALID_ARG
        case NotFound():
            return codes.NOT_FOUND
        case Unavailable():
            return codes.UNAVAILABLE
        case _:
            return codes.INTERNAL
