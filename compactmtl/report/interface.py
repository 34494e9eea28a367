"""Where a bundle lies and what its model takes and gives, for those who deploy it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compactmtl.artifacts.layout import BUNDLE_FILE, VERIFICATION_FILE
from compactmtl.config.schema import Frozen

if TYPE_CHECKING:
    from compactmtl.export.record import BundleInfo, InputRecord, TensorRecord


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
    channel is the caller's part. `resize` says how an image of another shape gets `size`, `fill` what the padding of a
    letterbox holds before that, by channel.
    """

    size: tuple[int, int]  # height, width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    baked: bool
    layout: Literal["NCHW", "NHWC"]
    resize: Literal["stretch", "letterbox", "crop"] = "stretch"
    fill: tuple[int, ...] | None = None
    colors: Literal["gray", "RGB", "RGBA", "bands"] = "RGB"

    @property
    def kind(self) -> str:
        """What an image is, in words, such as RGB or `5-band`."""
        return image_kind(self.colors, len(self.mean))

    @property
    def values(self) -> str:
        """The range of the values that the model takes."""
        if self.baked:
            return "0 to 255, as they are in the file; the model normalizes them"
        means, stds = (", ".join(f"{one:g}" for one in values) for values in (self.mean, self.std))
        return f"(value / 255 − mean) / std of each channel, mean ({means}), std ({stds})"


def image_kind(colors: str, channels: int) -> str:
    """What an image is, in words, of its `colors` as bundle.json names them: gray, RGB, RGBA, or such as `5-band`."""
    return f"{channels}-band" if colors == "bands" else colors


class Interface(Frozen):
    """A bundle as a deployer sees it."""

    path: str
    model: str
    files: tuple[BundleFile, ...]
    format: InputFormat | None  # none: the model takes arrays
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def interface(folder: Path, info: BundleInfo) -> Interface:
    """What bundle.json says of the model file."""
    names = [*info.files, BUNDLE_FILE, VERIFICATION_FILE]
    baked = info.target.onnx.preprocess
    pre = info.preprocessing
    return Interface(
        path=str(folder),
        model=info.model,
        files=tuple(BundleFile(name=name, bytes=_bytes(folder / name)) for name in names),
        format=None
        if pre is None
        else InputFormat(
            size=pre.size,
            mean=pre.mean,
            std=pre.std,
            baked=baked,
            layout="NHWC" if baked else "NCHW",
            resize=pre.resize,
            fill=pre.fit.fill if pre.resize == "letterbox" else None,
            colors=info.inputs[0].colors or "RGB",
        ),
        inputs=tuple(
            Tensor(
                name=one.name,
                shape=one.shape,
                dtype=one.dtype,
                meaning=_meaning(one, info),
            )
            for one in info.inputs
        ),
        outputs=tuple(
            Tensor(
                name=one.name,
                shape=one.shape,
                dtype=one.dtype,
                meaning=one.meaning or "unknown: the bundle does not say",
                unit=one.unit,
                classes=one.classes,
            )
            for one in info.outputs
        ),
    )


def _meaning(one: InputRecord, info: BundleInfo) -> str:
    """What an input holds; of several inputs how each is made, too."""
    what = one.meaning if info.preprocessing is None else _axes(one.meaning or "image", one)
    if not info.training.inputs or one.normalize is None:
        return what
    means, stds = (
        ", ".join(f"{value:g}" for value in values) for values in (one.normalize.mean, one.normalize.std)
    )
    value = "value" if one.resize is None else "value / 255"
    return f"{what}: ({value} − mean) / std, mean ({means}), std ({stds})"


def _axes(what: str, tensor: TensorRecord) -> str:
    return f"{what} ({', '.join(tensor.axes)})" if tensor.axes else what


def _bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
