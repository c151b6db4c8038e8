"""What the voice is taught by: hibari (hibari-tts on PyPI), its timings, its speech, and the same speech as a man's.

Not among the project's dependencies: `pip install -r tools/demo_voice/requirements.txt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RATE = 24_000
DURATIONS = "/Clip_output_0"
"""The node of hibari's graph that holds how long each phoneme is, in units of 25 ms."""
UNIT, FRAME = 600, 300
"""Samples of a unit, and of one of hibari's frames."""
UNVOICED = 40.0
"""Hz; below, hibari means no pitch."""
MELODY = 0.5
"""How much of hibari's intonation is kept: the tokens have none, and what they do not tell comes out blurred."""


@dataclass(frozen=True)
class Speaker:
    """How a voice is made of hibari's: F0 times `pitch`, frequencies of the spectrum times `scale`; mean F0, Hz."""

    pitch: float
    scale: float
    mean: float


SPEAKERS = {"heart": Speaker(1.0, 1.0, 190.0), "bass": Speaker(0.56, 0.84, 106.0)}
"""hibari's own voice, and a lower one."""


@dataclass(frozen=True)
class Spoken:
    """A sentence as hibari would say it."""

    text: str
    symbols: str
    durations: np.ndarray
    """Of the symbols and of a pad at either end, in units."""


class Source:
    """hibari on one thread."""

    def __init__(self, front: bool = False) -> None:
        """front: only the first half of the network, which knows the timings and is ten times as fast."""
        import onnxruntime
        from hibari import Hibari

        self._hibari = Hibari()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        model = _graph(Path(self._hibari.model_path), front).SerializeToString()
        self._net = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def timings(self, text: str) -> Spoken | None:
        """None where hibari does not see one group of phonemes in each word."""
        said = self._hibari.phonemize(text)
        if len(said) != 1 or len(said[0].split(" ")) != len(text.split(" ")):
            return None
        if not set(said[0]) <= set(self._hibari.vocab):
            return None
        (durations,) = self._net.run([DURATIONS], self._inputs(said[0]))
        return Spoken(text, said[0], durations.reshape(-1).astype(np.int16))

    def speech(self, spoken: Spoken, speaker: Speaker) -> tuple[np.ndarray, np.ndarray]:
        """Samples, and F0 in Hz of every `FRAME` samples, zero where there is none."""
        from hibari import dsp

        names = [output.name for output in self._net.get_outputs() if output.name != DURATIONS]
        parts = self._net.run(names, self._inputs(spoken.symbols))
        harmonic, phase, noise, rest, free, f0 = (part[0] for part in parts)
        f0 = _flattened(f0 * speaker.pitch, speaker.mean)
        louder = np.log(1 / speaker.pitch) * 0.5
        wave = dsp.synth(
            _moved(harmonic, speaker, -12.0) + louder,
            _moved(phase, speaker, None),
            _moved(noise, speaker, -12.0),
            _moved(rest, speaker, -12.0) - (1.0 if speaker.scale != 1 else 0.0),
            free,
            f0,
            np.random.default_rng(0),
        )
        return wave.astype(np.float32), np.where(f0 > UNVOICED, f0, 0.0).astype(np.float32)

    def _inputs(self, symbols: str) -> dict[str, np.ndarray]:
        return {"ids": np.asarray([self._hibari.ids(symbols)], np.int64), "speed": np.ones(1, np.float32)}


def _flattened(f0: np.ndarray, mean: float) -> np.ndarray:
    voiced = f0 > UNVOICED
    flat = mean * (np.maximum(f0, UNVOICED) / mean) ** MELODY
    return np.where(voiced, flat, 0.0).astype(np.float32)


def _moved(rows: np.ndarray, speaker: Speaker, above: float | None) -> np.ndarray:
    """[bins, frames] with their frequencies scaled; `above` is what stands where the source has none."""
    if speaker.scale == 1:
        return rows
    last = len(rows) - 1
    at = np.arange(last + 1) / speaker.scale
    low = np.clip(at.astype(int), 0, last - 1)
    part = np.clip(at - low, 0, 1)[:, None].astype(np.float32)
    moved = rows[low] * (1 - part) + rows[low + 1] * part
    if above is not None:
        moved = np.where((at > last)[:, None], above, moved)
    return np.ascontiguousarray(moved, np.float32)


def _graph(path: Path, front: bool) -> Any:
    """hibari's graph with its durations as an output; with `front` nothing else."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    output = onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None)
    if not front:
        graph.output.append(output)
        return model
    makers = {name: node for node in graph.node for name in node.output}
    kept, todo = set(), [DURATIONS]
    while todo:
        node = makers.get(todo.pop())
        if node is not None and id(node) not in kept:
            kept.add(id(node))
            todo += node.input
    nodes = [node for node in graph.node if id(node) in kept]
    used = {name for node in nodes for name in node.input}
    weights = [weight for weight in graph.initializer if weight.name in used]
    half = onnx.helper.make_graph(nodes, "front", list(graph.input), [output], weights)
    return onnx.helper.make_model(half, opset_imports=model.opset_import, ir_version=model.ir_version)
