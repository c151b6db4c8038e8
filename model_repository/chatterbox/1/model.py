"""Triton model `chatterbox`: whole utterances. A thin adapter over chatterbox_engine: parse, submit, send."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from chatterbox_engine import assemble, contract
from chatterbox_engine.config import Config
from chatterbox_engine.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestError,
)
from chatterbox_engine.types import SynthesisResult


class TritonPythonModel:
    """`execute` returns None at once; each request is answered through its response sender when its audio is ready, so
    that no request waits for the slowest of the batch that Triton formed."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._config = Config.load({name: entry["string_value"] for name, entry in parameters.items()})
        self._engine = assemble.build(self._config, report=_log, on_failure=_end_process)
        self._engine.start()
        _log("ready")

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            # Raising out of execute leaks the request's shared memory (triton server issue 7481): always answer.
            sender = request.get_response_sender()
            try:
                call = contract.parse(
                    _tensors(request),
                    max_text_chars=self._config.max_text_chars,
                    max_seconds=self._config.max_seconds,
                )
                self._engine.submit(call.request, partial(_answer, sender, call.format))
            except RequestError as error:
                _send(sender, error=error)
            except Exception as error:
                traceback.print_exc()
                _send(sender, error=RequestError(f"{type(error).__name__}: {error}"))

    def finalize(self) -> None:
        self._engine.close()


def _tensors(request: Any) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _answer(sender: Any, audio_format: str, outcome: SynthesisResult | RequestError) -> None:
    """Called on the engine's sender thread."""
    if isinstance(outcome, RequestError):
        _send(sender, error=outcome)
        return
    tensors = contract.outputs(outcome, audio_format)
    _send(sender, tensors=[pb_utils.Tensor(name, value) for name, value in tensors.items()])


def _send(sender: Any, *, tensors: Sequence[Any] = (), error: RequestError | None = None) -> None:
    failure = None if error is None else pb_utils.TritonError(str(error), _code(error))
    response = pb_utils.InferenceResponse(output_tensors=list(tensors), error=failure)
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _code(error: RequestError) -> Any:
    """Triton's code for an error; HTTP and gRPC turn it into their own status."""
    codes = pb_utils.TritonError
    match error:
        case InvalidRequest():
            return codes.INVALID_ARG
        case NotFound():
            return codes.NOT_FOUND
        case Overloaded() | DeadlineExceeded():
            return codes.UNAVAILABLE
        case Cancelled():
            return codes.CANCELLED
        case _:
            return codes.INTERNAL


def _end_process(error: BaseException) -> None:
    """The engine is gone and every request answered; the launcher sees the process end and stops the server."""
    traceback.print_exception(error)
    os._exit(1)


def _log(line: str) -> None:
    pb_utils.Logger.log_info(f"chatterbox: {line}")
