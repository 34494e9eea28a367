"""A model as a file for a target: exported to ONNX, then brought to the target's precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from torch import nn

from compactmtl.artifacts.told import Progress
from compactmtl.config.precision import Precision
from compactmtl.config.target import Target
from compactmtl.export.onnx import export_onnx
from compactmtl.export.precision import PrecisionRecord, apply_precision
from compactmtl.export.precision.apply import Check
from compactmtl.export.precision.ranges import Feed

EXTERNAL = {"auto": None, "always": True, "never": False}


class Writer(Protocol):
    """Writes several models as files for one target, all with the same inputs and outputs."""

    @property
    def target(self) -> Target:
        """Of the files."""

    @property
    def inputs(self) -> tuple[Any, ...]:
        """An example of the arguments that the files take: tensors, or nested ones."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the tensors in `inputs`, in their order."""

    def write(
        self,
        model: Any,
        path: Path,
        *,
        metadata: Mapping[str, str] | None = None,
        check: Check | None = None,
        progress: Progress = ...,
    ) -> PrecisionRecord | None:
        """Write `model` to `path`, brought to the target's precision; what that pass did, or None for float32.

        `check` gives the accuracy gates that a candidate file fails; without it no layers are searched that int8
        should leave in float.
        """

    def at(self, precision: Precision) -> Self:
        """The same for the target in another precision."""


def write_module(
    model: nn.Module,
    inputs: tuple[Any, ...],
    path: Path,
    target: Target,
    feeds: Callable[[], Sequence[Feed]],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str] | None = None,
    size_dimensions: tuple[int, int] = (2, 3),
    metadata: Mapping[str, str] | None = None,
    check: Check | None = None,
    progress: Progress = lambda line: None,
) -> PrecisionRecord | None:
    """Export a module as `target` asks, and lower its precision; `feeds` gives the calibration batches.

    Raises as `export_onnx` and `apply_precision`.
    """
    onnx = target.onnx
    progress(f"exporting to ONNX (opset {onnx.opset})")
    export_onnx(
        model,
        inputs,
        path,
        input_names=input_names,
        output_names=output_names,
        opset=onnx.opset,
        dynamic_batch=onnx.dynamic_batch,
        dynamic_size=onnx.dynamic_size,
        size_dimensions=size_dimensions,
        metadata=metadata,
        external_data=EXTERNAL[onnx.external_data],
    )
    return apply_precision(path, target, feeds(), check=check, progress=progress)
