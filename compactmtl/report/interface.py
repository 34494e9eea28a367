"""Where a bundle lies and what its model takes and gives, for those who deploy it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compactmtl.artifacts.layout import BUNDLE_FILE, VERIFICATION_FILE
from compactmtl.config.schema import Frozen
from compactmtl.data.base import Rule, Vector
from compactmtl.errors import command

if TYPE_CHECKING:
    from compactmtl.export.record import BundleInfo, InputRecord, TensorRecord

_RESIZED = {"stretch": "stretched to", "letterbox": "letterboxed to", "crop": "scaled and cut to"}


class BundleFile(Frozen):
    """A file of a bundle and its size; none where the file is gone, as of a run that was copied in part."""

    name: str
    bytes: int | None


class InputFormat(Frozen):
    """How an image becomes an input of the model.

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
        return f"(value / 255 − mean) / std of each channel, {_statistics(self.mean, self.std)}"

    @property
    def words(self) -> str:
        """Kind, order of the axes, rule of resizing, size and values, in sentences."""
        height, width = self.size
        return (
            f"{self.kind}, {self.layout}, {_RESIZED[self.resize]} {height}×{width} (height × width) by a bilinear filter with "
            f"antialiasing. Values: {self.values}."
        )


class NumbersFormat(Frozen):
    """How the numbers of a vector become an input of the model: (value − mean) / std of each, unless `baked`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    baked: bool

    @property
    def kind(self) -> str:
        """How many there are, such as 3 numbers."""
        return f"{len(self.mean)} number{'s' * (len(self.mean) != 1)}"

    @property
    def values(self) -> str:
        """What becomes of them."""
        return (
            "as they are; the model normalizes them"
            if self.baked
            else f"(value − mean) / std of each, {_statistics(self.mean, self.std)}"
        )

    @property
    def words(self) -> str:
        """How many there are, and what becomes of their values, in sentences."""
        return f"{self.kind}. Values: {self.values}."


class Tensor(Frozen):
    """One input or output of the model file. A free dimension is its name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    meaning: str
    unit: str = ""
    classes: tuple[str, ...] = ()
    format: InputFormat | NumbersFormat | None = None  # of an input; none: the model takes arrays


def image_kind(colors: str, channels: int) -> str:
    """What an image is, in words, of its `colors` as bundle.json names them: gray, RGB, RGBA, or such as `5-band`."""
    return f"{channels}-band" if colors == "bands" else colors


class Interface(Frozen):
    """A bundle as a deployer sees it."""

    path: str
    model: str
    files: tuple[BundleFile, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    named: bool = False  # whether files are given as NAME=FILE

    @property
    def described(self) -> tuple[Tensor, ...]:
        """The inputs of which is known how they are made of files; none where the model takes arrays."""
        return tuple(one for one in self.inputs if one.format is not None)

    @property
    def predict(self) -> str:
        """What to type to run it on one image, or on one sample of named inputs."""
        first, *others = [f"{one.name}=FILE" for one in self.inputs] if self.named else ["IMAGE"]
        return command("predict", self.path, first, *others)


def interface(folder: Path, info: BundleInfo) -> Interface:
    """What bundle.json says of the model file."""
    names = [*info.files, BUNDLE_FILE, VERIFICATION_FILE]
    rules, baked = info.rules, info.target.onnx.preprocess
    return Interface(
        path=str(folder),
        named=bool(info.training.inputs) or len(info.inputs) > 1,
        model=info.model,
        files=tuple(BundleFile(name=name, bytes=_bytes(folder / name)) for name in names),
        inputs=tuple(
            Tensor(
                name=one.name,
                shape=one.shape,
                dtype=one.dtype,
                meaning=_axes(one.meaning or "image", one) if one.name in rules else one.meaning,
                format=_format(one, rules[one.name], baked=baked) if one.name in rules else None,
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


def _format(one: InputRecord, rule: Rule, *, baked: bool) -> InputFormat | NumbersFormat:
    if isinstance(rule, Vector):
        return NumbersFormat(mean=rule.mean, std=rule.std, baked=baked)
    return InputFormat(
        size=rule.size,
        mean=rule.mean,
        std=rule.std,
        baked=baked,
        layout="NHWC" if baked else "NCHW",
        resize=rule.resize,
        fill=rule.fit.fill if rule.resize == "letterbox" else None,
        colors=one.colors or "RGB",
    )


def _statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    means, stds = (", ".join(f"{one:g}" for one in values) for values in (mean, std))
    return f"mean ({means}), std ({stds})"


def _axes(what: str, tensor: TensorRecord) -> str:
    return f"{what} ({', '.join(tensor.axes)})" if tensor.axes else what


def _bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
