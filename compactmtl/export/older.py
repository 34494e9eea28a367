"""bundle.json of format 1, which named tensors and tasks apart and left their meaning to the reader, as format 2."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from compactmtl.config.schema import Frozen
from compactmtl.config.target import Target
from compactmtl.config.trust import is_class_name
from compactmtl.data.base import Preprocessing
from compactmtl.export.describe import input_record, output_records
from compactmtl.export.precision.record import PrecisionRecord
from compactmtl.export.record import BundleInfo, BundleTask, FileName, Sha256, Shape, Training
from compactmtl.tasks.build import recorded_task


class Tensor1(Frozen):
    """One input or output; a free dimension is its name."""

    name: str
    shape: Shape
    dtype: str


class BundleInfo1(Frozen):
    """bundle.json, format 1."""

    version: Literal[1]
    run: str
    compact: bool
    target_name: str
    target: Target
    model: FileName
    files: dict[FileName, Sha256]
    inputs: tuple[Tensor1, ...] = Field(min_length=1)
    outputs: tuple[Tensor1, ...] = Field(min_length=1)
    tasks: dict[str, BundleTask]
    preprocessing: Preprocessing
    recipe_sha256: str
    plan_sha256: str | None
    weights_sha256: str | None = None
    versions: dict[str, str]
    created: str
    precision: PrecisionRecord | None = None


def upgraded(values: dict[str, Any]) -> BundleInfo:
    """The record of format 2. Raises pydantic's ValidationError, and ArtifactError where tasks are damaged.

    The meaning of an output whose kind of task is the user's own class stays unknown: reading a record imports nothing.
    """
    old = BundleInfo1.model_validate(values)
    tasks = {
        name: recorded_task(name, one.config, one.spec, one.channels)
        for name, one in old.tasks.items()
        if not is_class_name(one.kind)
    }
    outputs = {one.name: one for one in old.outputs}
    kept: tuple[str, ...] = (
        "run",
        "compact",
        "target_name",
        "target",
        "model",
        "files",
        "recipe_sha256",
        "plan_sha256",
    )
    kept += ("weights_sha256", "versions", "created", "precision")
    return BundleInfo(
        inputs=tuple(
            input_record(one.name, one.shape, one.dtype, old.preprocessing, baked=old.target.onnx.preprocess)
            for one in old.inputs
        ),
        outputs=output_records(
            {name: one.shape for name, one in outputs.items()},
            {name: one.dtype for name, one in outputs.items()},
            tasks,
            old.target.onnx.postprocess,
        ),
        training=Training(tasks=old.tasks, preprocessing=old.preprocessing),
        **{name: getattr(old, name) for name in kept},
    )
