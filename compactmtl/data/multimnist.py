"""MultiMNIST: a left and a right digit in one picture, made from MNIST. Source: Sabour et al. 2017; arXiv:1810.04650.

As in the multi-task benchmarks, two digits of 28x28 lie at the top left and the bottom right of 36x36 pixels and the
brighter of the two shows where they overlap. Digits of one split are never in another; which two make a picture depends
on the seed, the split and the picture's number alone.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compactmtl.artifacts.arrays import load_arrays
from compactmtl.artifacts.files import expanded
from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen
from compactmtl.data.base import Split, image_fit
from compactmtl.data.cache import Arrays
from compactmtl.data.files import FileDataset, Files, Record, held_apart, root_folder, source_of
from compactmtl.data.fit import Fit
from compactmtl.data.seeds import generator
from compactmtl.data.stored import own_size
from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "two overlapping digits in one picture, made from MNIST; the user's own download"
DEFAULT_SIZE = (36, 36)
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
DIGITS = tuple(str(digit) for digit in range(10))
CANVAS = 36

_SIDE = 28
_SPECS = {"left": TargetSpec("class", classes=DIGITS), "right": TargetSpec("class", classes=DIGITS)}
_SHARES: Mapping[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}  # of a file without a test set
_VAL_SHARE = 1 / 6  # of MNIST's own training digits: 10,000, as many as in its test set
_NPZ = ("mnist.npz", "mnist10k.npz")
_IDX: Mapping[str, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MARKS = (*_NPZ, *(f"{name}{end}" for name in _IDX["train"] for end in ("", ".gz")))
_MEND = (
    "put MNIST there: mnist.npz (https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz), the four "
    "idx files (train-images-idx3-ubyte.gz, ...), or an .npz with arrays images and labels"
)


class Options(Frozen):
    """`data.options` of multimnist."""

    seed: Annotated[int, Field(ge=0)] = Field(0, description="another seed pairs the digits in another way")
    train: Annotated[int, Field(ge=1)] | None = Field(
        None, description="pictures in the training split; by default as many as it has digits"
    )
    val: Annotated[int, Field(ge=1)] | None = Field(None, description="the same for the validation split")
    test: Annotated[int, Field(ge=1)] | None = Field(None, description="the same for the test split")


@dataclass(frozen=True)
class Digits:
    """Images uint8 (N, 28, 28) and labels int64 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Pair(Record):
    """One picture: the numbers of its two digits in the digits of its split."""

    left: int = 0
    right: int = 0


class MultiMNIST(FileDataset[Pair]):
    """Pictures of one split; they have names, and no files of their own."""

    def identifier(self, index: int) -> str:
        """Such as multimnist-train-00012: split and number."""
        return self._records[index].name


def load(config: DataConfig, split: Split) -> MultiMNIST:
    """The pictures of a split. Targets: `left` and `right`, the digits' classes."""
    options = validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    path, pools = read_pools(folder)
    source = source_of(split)
    digits = pools[source]
    count = {"train": options.train, "val": options.val, "test": options.test}[source]
    pairs = pair_up(len(digits.labels), count or len(digits.labels), options.seed, source, path)
    read = partial(_read, image_fit(config), digits)
    return MultiMNIST(
        config, split, _SPECS, Files(folder, held_apart(pairs, config, split), read, options.seed)
    )


def _read(fit: Fit, digits: Digits, pair: Pair) -> Arrays:
    canvas = overlay(digits.images[pair.left], digits.images[pair.right])
    return {
        "image": fit.rgb(np.repeat(canvas[None], 3, axis=0), "multimnist"),
        **own_size((CANVAS, CANVAS)),
        "left": digits.labels[pair.left],
        "right": digits.labels[pair.right],
    }


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is to be told: (problems, notes)."""
    validate_options(Options, config.options, "data.options")
    path, pools = read_pools(folder_of(config.root))
    counts = ", ".join(f"{len(pool.labels)} for {split}" for split, pool in pools.items())
    return [], [f"digits of {path.name}: {counts}"]


def folder_of(root: str | None) -> Path:
    """The folder with the digits' file; `root` may also be that file's. Raises DataError with where to get it."""
    if root is not None and expanded(root).suffix == ".npz":
        path = expanded(root)
        if not path.is_file():
            raise DataError(f"{path}: no such file (data.root of multimnist)", _MEND)
        return path.parent
    return root_folder(root, "multimnist", ("MNIST/raw", "MNIST", "mnist", "mnist10k"), _MARKS, _MEND)


def overlay(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two digits (28, 28) on 36x36 pixels, at the top left and the bottom right; the brighter one shows."""
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    canvas[:_SIDE, :_SIDE] = left
    np.maximum(canvas[-_SIDE:, -_SIDE:], right, out=canvas[-_SIDE:, -_SIDE:])
    return canvas


def pair_up(digits: int, count: int, seed: int, split: Split, path: Path) -> list[Pair]:
    """`count` pairs out of `digits`; each digit is on the left as often as any other, give or take once."""
    rng = generator("multimnist", seed, SPLITS.index(split))
    # Round by round, so that a larger count only adds pairs.
    rounds = [(rng.permutation(digits), rng.permutation(digits)) for _ in range(-(-count // digits))]
    left = np.concatenate([one for one, _ in rounds])[:count].tolist()
    right = np.concatenate([other for _, other in rounds])[:count].tolist()
    return [
        Pair(f"multimnist-{split}-{number:05d}", path, (), a, b)
        for number, (a, b) in enumerate(zip(left, right, strict=True))
    ]


def read_pools(folder: Path) -> tuple[Path, dict[Split, Digits]]:
    """The file read first, and the digits of each split: MNIST's own test set where there is one.

    Raises DataError, naming the file, for one that is missing, damaged or of other contents.
    """
    arrays = [folder / name for name in _NPZ if (folder / name).is_file()]
    if arrays:
        return arrays[0], _from_npz(arrays[0])
    path, train = _from_idx(folder, "train")
    _, test = _from_idx(folder, "test")
    return path, _with_test(train, test)


def _with_test(train: Digits, test: Digits) -> dict[Split, Digits]:
    order = generator("mnist split", len(train.labels)).permutation(len(train.labels))
    held = round(len(order) * _VAL_SHARE)
    return {"train": _take(train, order[held:]), "val": _take(train, order[:held]), "test": test}


def _from_npz(path: Path) -> dict[Split, Digits]:
    try:
        content = load_arrays(path)
        if not isinstance(content, dict):
            raise ValueError("it is a single array without a name")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole .npz file ({error})", _MEND) from error
    if {"x_train", "y_train", "x_test", "y_test"} <= set(content):
        train = _digits(path, content["x_train"], content["y_train"])
        return _with_test(train, _digits(path, content["x_test"], content["y_test"]))
    if not {"images", "labels"} <= set(content):
        raise DataError(f"{path}: holds {', '.join(content)}, expected images and labels", _MEND)
    all_digits = _digits(path, content["images"], content["labels"])
    count = len(all_digits.labels)
    order = generator("mnist split", count).permutation(count)  # the file may be sorted by class
    ends = np.round(np.cumsum(list(_SHARES.values())) * count).astype(int)
    starts = [0, *ends[:-1]]
    return {split: _take(all_digits, order[a:b]) for split, a, b in zip(_SHARES, starts, ends, strict=True)}


def _from_idx(folder: Path, part: str) -> tuple[Path, Digits]:
    paths: list[Path] = []
    for name in _IDX[part]:
        files = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not files:
            raise DataError(f"{folder / name}: no such file, nor {name}.gz", _MEND)
        paths.append(files[0])
    return paths[0], _digits(paths[0], _read_idx(paths[0]), _read_idx(paths[1]))


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes: 0, 0, 8, the number of dimensions, each dimension big-endian, then the values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, dimensions = struct.unpack(">HBB", data[:4])
        if (zero, kind) != (0, 8) or not 1 <= dimensions <= 3:
            raise ValueError("not an idx file of bytes")
        start = 4 + 4 * dimensions
        shape = struct.unpack(f">{dimensions}I", data[4:start])
        return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: not a whole idx file ({error})", _MEND) from error


def _digits(path: Path, images: NDArray[Any], labels: NDArray[Any]) -> Digits:
    fits = images.ndim == 3 and images.shape[1:] == (_SIDE, _SIDE) and images.dtype == np.uint8
    if not fits or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or not len(labels):
        raise DataError(
            f"{path}: images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}, expected "
            "uint8 (N, 28, 28) and whole numbers (N,)",
            _MEND,
        )
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()}, expected 0 to 9", _MEND)
    return Digits(images, labels.astype(np.int64))


def _take(digits: Digits, numbers: NDArray[np.int64]) -> Digits:
    return Digits(digits.images[numbers], digits.labels[numbers])
