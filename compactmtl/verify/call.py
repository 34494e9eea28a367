"""What calling a runtime takes whatever the model computes: a model with the same inputs and outputs and nothing between."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper, save

from compactmtl.backends import Runner, get_backend
from compactmtl.backends.base import Arrays
from compactmtl.config.target import Target

REPEATS = 50
WARMUP = 10
_OPSET, _IR = 18, 10


def call_time(runner: Runner, arrays: Arrays, target: Target) -> float:
    """Milliseconds, the median. Raises ArtifactError or MissingDependencyError where the target opens no such model."""
    outputs = runner.run(arrays)
    plain = target.model_copy(
        update={"precision": "fp32"}
    )  # there is no layer whose precision could be shown
    with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder:
        path = Path(folder) / "nothing.onnx"
        _write(path, arrays, outputs)
        with get_backend(target.backend).open(path, plain) as nothing:
            for _ in range(WARMUP):
                nothing.run(arrays)
            samples = []
            for _ in range(REPEATS):
                start = time.perf_counter_ns()
                nothing.run(arrays)
                samples.append(time.perf_counter_ns() - start)
    return float(np.median(samples)) / 1e6


def _write(path: Path, inputs: Arrays, outputs: Arrays) -> None:
    """A model that reads its inputs' first value and writes constants."""
    nodes = [helper.make_node("Identity", [f"constant_{name}"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "nothing",
        [_info(name, array) for name, array in inputs.items()],
        [_info(name, array) for name, array in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), f"constant_{name}") for name, array in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    save(model, str(path))


def _info(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
    assert kind != TensorProto.UNDEFINED
    return helper.make_tensor_value_info(name, kind, array.shape)
