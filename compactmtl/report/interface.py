"""Where a bundle lies and what its model takes and gives, for those who deploy it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compactmtl.artifacts.layout import BUNDLE_FILE, VERIFICATION_FILE
from compactmtl.config.schema import Frozen

if TYPE_CHECKING:
    from compactmtl.export.bundle import BundleInfo
    from compactmtl.tasks import Task

# What the bundle's settings put behind an output, in words.
_BEHIND = {
    "argmax": "class index, taken by argmax in the model file",
    "softmax": "probability of each class, softmax in the model file",
    "sigmoid": "probability, sigmoid in the model file",
}


class BundleFile(Frozen):
    """A file of a bundle and its size; none where the file is gone, as of a run that was copied in part."""

    name: str
    bytes: int | None


class Tensor(Frozen):
    """One input or output of the model file. A free dimension is its name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    meaning: str
    unit: str = ""
    classes: tuple[str, ...] = ()


class InputFormat(Frozen):
    """How an image becomes the model's input.

    With `baked` the model file takes uint8 values and normalizes them itself, else (value / 255 − mean) / std of each
    color is the caller's part.
    """

    size: tuple[int, int]  # height, width
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    baked: bool
    layout: Literal["NCHW", "NHWC"]

    @property
    def values(self) -> str:
        """The range of the values that the model takes."""
        if self.baked:
            return "0 to 255, as they are in the file; the model normalizes them"
        means, stds = (", ".join(f"{one:g}" for one in values) for values in (self.mean, self.std))
        return f"(value / 255 − mean) / std of each color, mean ({means}), std ({stds})"


class Interface(Frozen):
    """A bundle as a deployer sees it."""

    path: str
    model: str
    files: tuple[BundleFile, ...]
    format: InputFormat
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def interface(folder: Path, info: BundleInfo, tasks: Mapping[str, Task]) -> Interface:
    """What bundle.json says of the model file; `tasks` are the run's, which know what their outputs mean."""
    names = [*info.files, BUNDLE_FILE, VERIFICATION_FILE]
    baked = info.target.onnx.preprocess
    pre = info.preprocessing
    form = InputFormat(
        size=pre.size, mean=pre.mean, std=pre.std, baked=baked, layout="NHWC" if baked else "NCHW"
    )
    axes = "batch, height, width, color" if baked else "batch, color, height, width"
    return Interface(
        path=str(folder),
        model=info.model,
        files=tuple(BundleFile(name=name, bytes=_bytes(folder / name)) for name in names),
        format=form,
        inputs=tuple(
            Tensor(name=one.name, shape=one.shape, dtype=one.dtype, meaning=f"RGB image ({axes})")
            for one in info.inputs
        ),
        outputs=tuple(
            Tensor(
                name=one.name,
                shape=one.shape,
                dtype=one.dtype,
                meaning=_meaning(one.name, info, tasks),
                unit=info.tasks[one.name].spec.unit if one.name in info.tasks else "",
                classes=info.tasks[one.name].spec.classes if one.name in info.tasks else (),
            )
            for one in info.outputs
        ),
    )


def _meaning(name: str, info: BundleInfo, tasks: Mapping[str, Task]) -> str:
    after = info.target.onnx.postprocess.get(name)
    if after is not None:
        return _BEHIND[after]
    return tasks[name].meaning if name in tasks else "unknown: the recipe has no task of this name"


def _bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
