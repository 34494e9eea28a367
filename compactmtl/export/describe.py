"""What a model file takes and gives, in the words of bundle.json, from its tensors and the run's tasks."""

from __future__ import annotations

from collections.abc import Mapping

from compactmtl.data.base import Preprocessing, Rule, Vector
from compactmtl.export.record import Colors, InputRecord, Normalize, OutputRecord, Resize, Shape
from compactmtl.tasks.base import Task
from compactmtl.tasks.pictures import palette
from compactmtl.tasks.postprocess import POSTPROCESS

# What `data.pixels` and `data.bands` do, which every reader of pictures must do alike.
_DEEP = (
    "Values of 16 bits are divided by 257 and rounded, and files of 32 bits a value are refused, unless `values` gives their "
    "range. A file of several pictures is refused."
)
_UPRIGHT = "and turn the picture upright as its EXIF orientation says."
_ARRAYS = "A .npy file is an array (height, width, channels) or (channels, height, width) of uint8 or uint16."
PICTURE = {
    "RGB": f"Decode to 8-bit RGB {_UPRIGHT} Gray becomes three equal colors. Transparency is left out, not blended with a "
    f"background. Palettes and CMYK are converted as Pillow does it. {_DEEP} {_ARRAYS}",
    "gray": f"Decode to 8-bit gray {_UPRIGHT} Colors become 0.299 red + 0.587 green + 0.114 blue as Pillow rounds it. "
    f"Transparency is left out. {_DEEP} {_ARRAYS}",
    "RGBA": f"Decode to 8-bit RGBA {_UPRIGHT} Alpha is the fourth channel, and the colors are not multiplied with it. A "
    f"picture without a fourth channel is refused. {_DEEP} {_ARRAYS}",
    "bands": f"Read all bands of a TIFF in their order {_UPRIGHT} Another number of bands is refused. {_DEEP} {_ARRAYS}",
}
_COLORS: Mapping[int, Colors] = {1: "gray", 3: "RGB", 4: "RGBA"}  # by the number of channels
BY_CLASS = ("class", "label")  # names of axis 1 whose entries are the target's classes
BAKED = "turns it to float32 (batch, color, height, width) and normalizes it as in training: do not normalize it before"


def input_record(name: str, shape: Shape, dtype: str, rule: Rule, *, baked: bool) -> InputRecord:
    """An input that takes pictures or vectors; `baked`: the model takes values as they are and normalizes them itself."""
    if isinstance(rule, Vector):
        return _vector_record(name, shape, dtype, rule, baked=baked)
    return _picture_record(name, shape, dtype, rule, baked=baked)


def _vector_record(name: str, shape: Shape, dtype: str, rule: Vector, *, baked: bool) -> InputRecord:
    what = f"{rule.channels} numbers of a sample"
    return InputRecord(
        name=name,
        shape=shape,
        dtype=dtype,
        axes=("batch", "number"),
        meaning=what if baked else f"{what}, normalized",
        layout=None,
        channels=None,
        colors=None,
        normalize=None if baked else Normalize(scale=1.0, mean=rule.mean, std=rule.std),
        in_model="normalizes them as in training: do not normalize them before" if baked else "nothing",
    )


def _picture_record(
    name: str, shape: Shape, dtype: str, preprocessing: Preprocessing, *, baked: bool
) -> InputRecord:
    axes: tuple[str, ...] = (
        ("batch", "height", "width", "color") if baked else ("batch", "color", "height", "width")
    )
    rows, columns = (shape[axes.index(side)] if len(shape) == 4 else "" for side in ("height", "width"))
    height, width = preprocessing.size
    colors = colors_of(preprocessing.channels)
    fit = preprocessing.fit
    normalize = None if baked else Normalize(mean=preprocessing.mean, std=preprocessing.std)
    what = f"pictures of {preprocessing.channels} bands" if colors == "bands" else f"{colors} pictures"
    return InputRecord.model_validate(
        {
            "name": name,
            "shape": shape,
            "dtype": dtype,
            "axes": axes,
            "meaning": f"{what} of 0 to 255" if baked else f"{what}, normalized",
            "layout": "NHWC" if baked else "NCHW",
            "channels": preprocessing.channels,
            "colors": colors,
            "values": preprocessing.range,
            "picture": PICTURE[colors],
            "resize": Resize(
                height=height,
                width=width,
                fixed=isinstance(rows, int) and isinstance(columns, int),
                how=fit.how,
                fill=fit.fill if fit.how == "letterbox" else None,
            ),
            "normalize": normalize,
            "range": (0.0, 255.0) if normalize is None else _range(normalize),
            "in_model": BAKED if baked else "nothing",
        }
    )


def colors_of(channels: int) -> Colors:
    """What the channels of an image are, by their number."""
    return _COLORS.get(channels, "bands")


TO_PICTURE = (
    "decode first, then leave out the padding that `resize` of the input put around the picture. Row r of the picture's h rows "
    "is row floor((2r + 1) H / (2h)) of the H rows that the resized picture has, columns likewise: nothing is interpolated. "
    "What a crop cut off is `unknown`"
)


def output_record(name: str, shape: Shape, dtype: str, task: Task | None, after: str | None) -> OutputRecord:
    """One output; `task` is none where its meaning is unknown, `after` the function that the file has behind it."""
    if task is None:
        return OutputRecord(name=name, shape=shape, dtype=dtype)
    process = None if after is None else POSTPROCESS[after]
    axes: tuple[str, ...] = ("batch", task.axis, "height", "width") if task.dense else ("batch", task.axis)
    if len(shape) < len(axes):  # argmax takes axis 1 away
        axes = axes[:1] + axes[2:]
    decoding = task.decoding if process is None else process.decoding(task.decoding)
    # A target may have classes of which the output does not speak, as boundaries between them.
    by_class = task.axis in BY_CLASS or decoding.panoptic is not None
    classes = task.spec.classes if by_class else ()
    return OutputRecord.model_validate(
        {
            "name": name,
            "shape": shape,
            "dtype": dtype,
            "axes": axes,
            "meaning": task.meaning if process is None else process.meaning,
            "kind": task.kind,
            "values": task.values if process is None else process.values,
            "unit": task.spec.unit,
            "classes": classes,
            "colors": tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette(len(classes))),
            "map": task.dense,
            "to_picture": TO_PICTURE if task.dense else "",
            "unknown": task.unknown,
            "in_model": after,
            "decode": decoding,
        }
    )


def output_records(
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, str],
    tasks: Mapping[str, Task],
    after: Mapping[str, str],
) -> tuple[OutputRecord, ...]:
    """Every output in the file's order."""
    return tuple(
        output_record(name, shape, dtypes[name], tasks.get(name), after.get(name))
        for name, shape in shapes.items()
    )


def _range(normalize: Normalize) -> tuple[float, float]:
    """Least and greatest value after normalization."""
    colors = list(zip(normalize.mean, normalize.std, strict=True))
    least = min((0 - mean) / std for mean, std in colors)
    greatest = max((255 * normalize.scale - mean) / std for mean, std in colors)
    return round(least, 6), round(greatest, 6)
