"""The golden pair of a bundle: a made picture, and what the model gives for it.

A program that was written after bundle.json has everything right where it gets the same. The picture is drawn, not from a
data set, so that each mistake of preparing it shows: its colors differ by place (order of the colors), it has another shape
than the network's input (stretched or cut), and stripes of a few pixels (filter and antialiasing).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compactmtl.artifacts.files import write_bytes
from compactmtl.artifacts.layout import GOLDEN_ARRAYS, GOLDEN_BANDS, GOLDEN_PICTURE
from compactmtl.config.target import Target
from compactmtl.data.base import Preprocessing, Vector
from compactmtl.data.images import read_picture
from compactmtl.data.vectors import read_vector
from compactmtl.errors import ArtifactError
from compactmtl.export.interface import feed_all, restore
from compactmtl.export.record import BundleInfo, Golden, GoldenTensor, TensorRecord
from compactmtl.tasks.base import Task
from compactmtl.tasks.placement import Placement

Arrays = Mapping[str, NDArray[Any]]
STORED = 48  # rows and columns at most that are kept of a map
MOST = 10_000  # numbers at most that are kept of an output of a model that takes arrays
# Of a target whose parity has no bound, as int8: another processor may round each layer's values another way.
UNBOUNDED = 0.1
# Pixels whose two best classes are equal but for rounding may take either.
TIES = 0.01
MOVED = 7  # columns from one picture of several inputs to the next
INPUT = 1e-4  # of the largest value: a hundredth of what one level of the 8 bits makes


def write_golden(
    folder: Path,
    info: BundleInfo,
    tasks: Mapping[str, Task],
    run: Callable[[Arrays], Arrays],
    made_by: str,
) -> Golden:
    """Write the picture and the arrays into a bundle's folder; what bundle.json says of them.

    `run` is the model: a batch of one in, all outputs back.
    """
    images = info.preprocessing
    if images is None:
        raise ArtifactError("the bundle does not say how pictures become its input", "give images=")
    several = info.training.inputs
    files: dict[str, str] = {}
    values: dict[str, NDArray[Any]] = {}
    for number, (name, rule) in enumerate(info.rules.items()):
        if isinstance(rule, Vector):
            # Numbers that lie on both sides of the mean, none twice, and others in each vector.
            places = np.linspace(-1.5, 1, rule.channels) + number / 16
            numbers = np.array(rule.mean) + np.array(rule.std) * places
            files[name] = _write_numbers(folder, f"golden-{name}.npy", numbers.astype(np.float32))
            values[name] = read_vector(folder / files[name], rule.channels, name)
            continue
        # Each picture another one, in other colors and moved: none can take another's place unseen.
        drawn = np.roll(draw(rule.size), (number, MOVED * number), (2, 1))
        files[name] = _write_picture(folder, drawn, rule.channels, f"-{name}" if several else "")
        values[name], read = read_picture(folder / files[name], rule.fit)
    arrays = feed_all(values, info.rules, baked=info.target.onnx.preprocess)
    outputs = run(arrays)
    records = {one.name: one for one in (*info.inputs, *info.outputs)}
    tensors = {
        name: GoldenTensor(step=_step(array, records[name]), tolerance=INPUT)
        for name, array in arrays.items()
    } | {
        one.name: GoldenTensor(
            step=_step(outputs[one.name], one), tolerance=_tolerance(one.name, outputs[one.name], info.target)
        )
        for one in info.outputs
    }
    stored = {
        name: thinned(array, records[name], tensors[name].step)
        for name, array in {**arrays, **outputs}.items()
    }
    write_bytes(folder / GOLDEN_ARRAYS, _npz(stored))
    return Golden(
        picture=files[next(name for name, rule in info.rules.items() if isinstance(rule, Preprocessing))],
        inputs=files if several else {},
        arrays=GOLDEN_ARRAYS,
        tensors=tensors,
        values=_values(info, tasks, outputs, images.fit.placement(read.size)),
        made_by=made_by,
    )


def write_array_golden(
    folder: Path,
    info: BundleInfo,
    tasks: Mapping[str, Task],
    arrays: Arrays,
    run: Callable[[Arrays], Arrays],
    made_by: str,
) -> Golden:
    """As `write_golden`, of a model that takes arrays: `arrays` are kept whole, so that they can be fed again."""
    outputs = run(arrays)
    tensors = {name: GoldenTensor(step=1, tolerance=0.0) for name in arrays} | {
        name: GoldenTensor(
            step=max(-(-array.size // MOST), 1), tolerance=_tolerance(name, array, info.target)
        )
        for name, array in outputs.items()
    }
    thin = {name: array.ravel()[:: tensors[name].step] for name, array in outputs.items()}
    write_bytes(folder / GOLDEN_ARRAYS, _npz({**arrays, **thin}))
    return Golden(
        picture=None,
        arrays=GOLDEN_ARRAYS,
        tensors=tensors,
        values=_values(info, tasks, outputs),
        made_by=made_by,
    )


def _values(
    info: BundleInfo, tasks: Mapping[str, Task], outputs: Arrays, place: Placement | None = None
) -> dict[str, Any]:
    """The first sample's decoded values in a few figures, of outputs whose kind of task is known; maps without padding."""
    after = info.target.onnx.postprocess
    values: dict[str, Any] = {}
    for name, task in tasks.items():
        raw = restore(outputs[name], after.get(name), task.channels)
        probabilities = {} if after.get(name) == "argmax" else task.probabilities(raw[0])
        value = task.read(raw)[0]
        if place is not None and task.dense:
            value = value[(..., *place.visible)]
        values[name] = task.summary(value, probabilities)
    return values


def draw(size: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture for a network of `size` (height, width), uint8 (H, W, 3): larger, and of another shape."""
    height, width = round(size[0] * 1.6) + 3, round(size[1] * 1.3) + 5
    down, right = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    rows, columns = np.indices((height, width))
    # Red grows to the right and green down, blue is the sky's: no two colors can change places unseen.
    picture = np.stack([40 + 190 * right, 30 + 170 * down, 220 - 180 * down * right], -1)
    stripes = (right > 0.55) & (down < 0.45)
    picture[stripes & (columns % 3 == 0)] = (250, 250, 245)
    picture[stripes & (rows % 4 == 0)] = (12, 10, 14)
    disc = (down - 0.62) ** 2 + ((right - 0.3) * 1.2) ** 2 < 0.05
    picture[disc] = (205, 60, 45)
    picture[disc & (down < 0.6) & (abs(right - 0.3) < 0.03)] = (255, 255, 255)
    roof = (down > 0.55 + abs(right - 0.75) * 0.8) & (down < 0.75)
    picture[roof] = (30, 110, 60)
    picture[(down > 0.85) & ((columns // 5 + rows // 5) % 2 == 0)] = (20, 25, 60)
    return picture.round().astype(np.uint8)


def _write_numbers(folder: Path, name: str, values: NDArray[Any]) -> str:
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_bytes(folder / name, buffer.getvalue())
    return name


def _write_picture(folder: Path, picture: NDArray[np.uint8], channels: int, of: str = "") -> str:
    """The picture with so many channels as a file of the bundle; its name, `of` a part of it."""
    image, numbers = (name.replace("golden", f"golden{of}", 1) for name in (GOLDEN_PICTURE, GOLDEN_BANDS))
    if channels in (1, 3):  # gray is read from colors, which is a way to go wrong too
        write_bytes(folder / image, _png(picture))
        return image
    # The further bands are others upside down: no two can change places unseen.
    bands = np.stack(
        [np.roll(picture, 3 * (n // 3), 0)[:: 1 - 2 * (n // 3 % 2), :, n % 3] for n in range(channels)], -1
    )
    if channels == 4:
        write_bytes(folder / image, _png(bands))
        return image
    return _write_numbers(folder, numbers, bands)


def thinned(array: NDArray[Any], record: TensorRecord, step: int) -> NDArray[Any]:
    """Every `step`-th row and column of one input or output."""
    sides = [slice(None, None, step if axis in ("height", "width") else 1) for axis in record.axes]
    return np.ascontiguousarray(array[tuple(sides)])


def _step(array: NDArray[Any], record: TensorRecord) -> int:
    sides = [
        size for size, axis in zip(array.shape, record.axes, strict=False) if axis in ("height", "width")
    ]
    return max(-(-max(sides, default=1) // STORED), 1)  # a side may be 0


def _tolerance(name: str, output: NDArray[Any], target: Target) -> float:
    tolerance = min(target.tolerance(name), UNBOUNDED)
    return max(tolerance, TIES) if output.dtype.kind in "iu" else tolerance


def _npz(arrays: Arrays) -> bytes:
    """A numpy archive. `np.savez` would take some names, such as "file", for its own arguments."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def _png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
