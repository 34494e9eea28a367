"""A backend from outside of the package, complete in one file: ONNX's own reference evaluator, in numpy."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compactmtl.backends.base import (
    Arrays,
    Availability,
    Backend,
    BackendOptions,
    Description,
    GraphPass,
    LayerTime,
    Runner,
    TensorInfo,
    read_options,
    run_failure,
)
from compactmtl.backends.machine import cpu_name
from compactmtl.backends.model_file import external_files
from compactmtl.config.precision import Precision
from compactmtl.config.schema import Frozen
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError

if TYPE_CHECKING:
    import onnx
    from onnx.reference import ReferenceEvaluator


class EvaluatorConfig(Frozen):
    """How the evaluator runs."""

    verbose: Annotated[int, Field(ge=0)] = 0


class ReferenceOptions(BackendOptions):
    """The section of a target that this backend reads."""

    evaluator: EvaluatorConfig = EvaluatorConfig()


class ReferenceBackend(Backend):
    """ONNX files by `onnx.reference`."""

    name = "onnx-reference"
    Options = ReferenceOptions
    packages = ("ml_dtypes",)
    precisions: ClassVar[dict[Precision, GraphPass]] = {"fp32": "none"}

    def on_cpu(self, target: Target) -> bool:
        return True

    def default_step(self, target: Target) -> int:
        return 1

    def availability(self, target: Target) -> Availability:
        try:
            import onnx.reference  # noqa: F401
        except ImportError as error:
            return Availability(False, f"onnx can't be imported ({error})", "pip install onnx")
        return Availability(True)

    def open(self, model: Path, target: Target) -> ReferenceRunner:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self.require(target)
        if not model.is_file():
            raise ArtifactError(f"{model} is not a file", "export the model first")
        external_files(model)
        loaded = onnx.load(model)
        verbose = read_options(ReferenceOptions, target).evaluator.verbose
        return ReferenceRunner(model, loaded, ReferenceEvaluator(loaded, verbose=verbose))


class ReferenceRunner(Runner):
    """A loaded graph."""

    def __init__(self, path: Path, model: onnx.ModelProto, evaluator: ReferenceEvaluator) -> None:
        self._path, self._model, self._evaluator = path, model, evaluator
        self.inputs = tuple(map(_info, model.graph.input))
        self.outputs = tuple(map(_info, model.graph.output))

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        try:
            arrays = self._evaluator.run(None, dict(inputs))
        except (ValueError, RuntimeError) as error:
            raise run_failure(self._path, "ONNX's reference evaluator", str(error)) from error
        return dict(zip(self.output_names, arrays, strict=True))

    def describe(self) -> Description:
        import onnx

        return Description(ReferenceBackend.name, onnx.__version__, "numpy", cpu_name(), "fp32", None)

    def layer_times(self, inputs: Arrays, repeats: int = 20, quantile: float = 0.5) -> tuple[LayerTime, ...]:
        from onnx.reference.op_run import OpRun

        seconds: dict[str, list[float]] = defaultdict(list)
        values: dict[str, Any] = {"": None, **dict(inputs), **self._evaluator.rt_inits_}
        for node in self._evaluator.rt_nodes_:
            assert isinstance(node, OpRun)
            for _ in range(repeats):
                start = time.perf_counter()
                outputs = node.run(*(values[name] for name in node.input))  # type: ignore[no-untyped-call]
                seconds[node.onnx_node.name].append(time.perf_counter() - start)
            values |= dict(zip(node.output, outputs, strict=False))
        operators = {node.name: node.op_type for node in self._model.graph.node}
        return tuple(
            LayerTime(name=name, operator=operators[name], milliseconds=float(np.median(times)) * 1e3)
            for name, times in seconds.items()
        )


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    return TensorInfo(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)
