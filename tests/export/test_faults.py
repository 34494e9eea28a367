"""Every fault of a bundle, each caught by its own error before anything is predicted with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.config.target import Target
from compactmtl.data.base import Preprocessing
from compactmtl.errors import (
    GATE,
    MISSING,
    USAGE,
    ArtifactError,
    CompactError,
    GateError,
    MissingDependencyError,
)
from compactmtl.export import Bundle
from compactmtl.export.bundle import BundleHashError, write_bundle
from compactmtl.export.onnx import model_tensors
from compactmtl.export.record import BundleInfo, InputRecord, OutputRecord, Training
from compactmtl.verify import check_parity
from compactmtl.verify.gates import raise_failed
from compactmtl.verify.parity import NameMismatchError, NonFiniteError, ShapeMismatchError
from compactmtl.verify.result import AccuracyResult, LatencyResult
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx

TARGET = Target(backend="onnxruntime")
Fault = Callable[[Path], None]


def bundle_of(folder: Path, target: Target = TARGET) -> Bundle:
    """A bundle of whatever model file is in the folder: its hashes fit, the file may not."""
    path = folder / MODEL_FILE
    inputs, outputs = model_tensors(path)
    return write_bundle(
        folder,
        BundleInfo(
            run="run",
            compact=False,
            target_name="t",
            target=target,
            model=MODEL_FILE,
            files={MODEL_FILE: sha256_file(path)},
            inputs=tuple(InputRecord(name=n, shape=s, dtype="float32") for n, s in inputs.items()),
            outputs=tuple(OutputRecord(name=n, shape=s, dtype="float32") for n, s in outputs.items()),
            training=Training(tasks={}, preprocessing=Preprocessing(size=(1, 1))),
            recipe_sha256="0" * 64,
            plan_sha256=None,
            versions={},
            created="",
        ),
    )


def verify(folder: Path, module: TwoHeads) -> None:
    """Open the bundle, compare it with its model, and hold the gates."""
    from compactmtl.verify import check_gates

    bundle = Bundle.open(folder)
    parity = check_parity(module, bundle.model_path, torch.randn(4, WIDTH), target=bundle.info.target)
    gates = check_gates(
        bundle.info.target,
        {},
        parity=parity,
        accuracy=AccuracyResult(samples=1, torch={}, artifact={}),
        latency=LatencyResult(reference="model", stats={}, speedup={}),
        subject="model",
        megabytes=bundle.megabytes,
    )
    raise_failed(gates, "the bundle")


def weight(value: float) -> Fault:
    def change(folder: Path) -> None:
        model = onnx.load(folder / MODEL_FILE)
        tensor = next(one for one in model.graph.initializer if one.name == "zeta.weight")
        array = numpy_helper.to_array(tensor).copy()
        array[0, 0] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, folder / MODEL_FILE)

    return change


def rewritten(**options: object) -> Fault:
    def change(folder: Path) -> None:
        write_onnx(folder / MODEL_FILE, TwoHeads(), **options)  # type: ignore[arg-type]

    return change


def truncate(folder: Path) -> None:
    content = (folder / MODEL_FILE).read_bytes()
    (folder / MODEL_FILE).write_bytes(content[: len(content) // 2])


# fault, whether bundle.json is written after it, so that its hash fits; the error, its exit code and what it says
FAULTS = {
    "tampered weight": (weight(9.0), False, BundleHashError, USAGE, "its hash is off"),
    "tampered weight, hash forged": (weight(9.0), True, GateError, GATE, "zeta: largest difference"),
    "NaN": (weight(np.nan), True, NonFiniteError, GATE, "output 'zeta' has 4 of 12 values that are NaN"),
    "renamed output": (
        rewritten(names=("zeta", "beta")),
        True,
        NameMismatchError,
        GATE,
        "the outputs are ['zeta', 'beta']",
    ),
    "swapped outputs": (
        rewritten(order=("alpha", "zeta")),
        True,
        GateError,
        GATE,
        "failed 2 of 2 gates: zeta: largest difference",
    ),
    "wrong shape": (rewritten(keep=2), True, ShapeMismatchError, GATE, "'zeta' has shape (4, 2)"),
    "wrong input": (rewritten(batch=3), True, ArtifactError, USAGE, "takes shape (3, 6), found (4, 6)"),
    "truncated file": (truncate, False, BundleHashError, USAGE, "its hash is off"),
    "other dtype": (rewritten(dtype=TensorProto.DOUBLE), True, CompactError, GATE, "'zeta' is float64"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_by_its_own_error(tmp_path: Path, name: str) -> None:
    fault, forged, error, code, message = FAULTS[name]
    module = TwoHeads().eval()
    write_onnx(tmp_path / MODEL_FILE, module)
    bundle_of(tmp_path)
    verify(tmp_path, module)  # sound so far
    fault(tmp_path)
    if forged:
        bundle_of(tmp_path)
    with pytest.raises(error, match=re.escape(message)) as caught:
        verify(tmp_path, module)
    assert caught.value.exit_code == code


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_truncated_file_is_no_model_of_any_backend(tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    module = TwoHeads()
    write_onnx(tmp_path / MODEL_FILE, module)
    truncate(tmp_path)
    with pytest.raises(ArtifactError, match=r"not a model that|can't be loaded by"):
        check_parity(module, tmp_path / MODEL_FILE, torch.randn(4, WIDTH), target=Target(backend=backend))


def test_onnxruntime_without_the_asked_provider(tmp_path: Path) -> None:
    module = TwoHeads()
    write_onnx(tmp_path / MODEL_FILE, module)
    bundle_of(tmp_path, TARGET.model_copy(update={"provider": "CoreMLExecutionProvider"}))
    with pytest.raises(MissingDependencyError, match="has no CoreMLExecutionProvider") as caught:
        verify(tmp_path, module)
    assert caught.value.exit_code == MISSING
