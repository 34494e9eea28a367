"""The labelled NYUv2 file nyu_depth_v2_labeled.mat (MATLAB 7.3, which is HDF5) and its split file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.nyuv2_labels import FRAMES, NAMED_LABELS, official_split
from compactmtl.errors import DataError, MissingDependencyError

MAT = "nyu_depth_v2_labeled.mat"
SPLITS_MAT = "splits.mat"
FETCH = "fetch it again from http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat (2.8 GB)"

Numbers = tuple[tuple[int, ...], tuple[int, ...]]


class MatFile:
    """Frames of the file by number from 0. Safe to hand to worker processes: each opens the file itself.

    MATLAB's arrays arrive with their axes reversed: images (N, 3, W, H), depths and labels (N, W, H).
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file that is not whole or not NYUv2's, MissingDependencyError without h5py."""
        self.path = path
        self._files: dict[int, Any] = {}
        images = self._array("images")
        self.count: int = images.shape[0]
        self.size: tuple[int, int] = (images.shape[3], images.shape[2]) if images.ndim == 4 else (0, 0)
        shape = (self.count, *self.size[::-1])
        if images.ndim != 4 or images.shape[1] != 3 or not self.count:
            raise DataError(f"{path}: images have the shape {images.shape}, expected (N, 3, W, H)", FETCH)
        for name in ("depths", "labels"):
            if self._array(name).shape != shape:
                raise DataError(
                    f"{path}: {name} have the shape {self._array(name).shape}, expected {shape}", FETCH
                )
        self._check_names()

    def image(self, number: int) -> NDArray[np.uint8]:
        """uint8 (3, H, W)."""
        values: NDArray[np.uint8] = self._frame("images", number).astype(np.uint8).transpose(0, 2, 1)
        return values

    def labels(self, number: int) -> NDArray[np.uint16]:
        """The file's own labels, 0 (unlabeled) to 894, (H, W)."""
        values: NDArray[np.uint16] = self._frame("labels", number).T
        return values

    def depth(self, number: int, kind: Literal["filled", "raw"] = "filled") -> NDArray[np.float32]:
        """Metres (H, W); `raw` is what the sensor saw, 0 where it saw nothing."""
        values = self._frame("depths" if kind == "filled" else "rawDepths", number).T.astype(np.float32)
        return np.where(np.isfinite(values) & (values > 0), values, 0).astype(np.float32)

    def scenes(self) -> list[str]:
        """Each frame's scene, such as kitchen_0004; empty names where the file does not say."""
        return self._texts("scenes", range(self.count)) or [""] * self.count

    def split(self) -> Numbers:
        """Numbers of the frames to train and to test: of splits.mat beside the file, or the official ones.

        Raises DataError for a split file that does not fit, or where one is needed: the file has not 1449 frames.
        """
        beside = self.path.with_name(SPLITS_MAT)
        if beside.is_file():
            return read_splits(beside, self.count)
        if self.count != FRAMES:
            raise DataError(
                f"{self.path}: holds {self.count} frames, and the official split is of {FRAMES}",
                f"{FETCH}; or say which frames train and test in {SPLITS_MAT} beside it (trainNdxs, testNdxs, from 1)",
            )
        return official_split()

    def _check_names(self) -> None:
        names = self._texts("names", [label - 1 for label in NAMED_LABELS])
        for (label, name), stored in zip(NAMED_LABELS.items(), names, strict=False):
            if stored != name:
                raise DataError(f"{self.path}: label {label} is {stored!r}, in NYUv2 it is {name!r}", FETCH)

    def _open(self) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.path}: reading it needs h5py", "pip install 'compactmtl[datasets]'"
            ) from error
        handle = self._files.get(os.getpid())  # a handle must not be shared with a forked process
        if handle is None:
            try:
                handle = h5py.File(self.path, "r")
            except OSError as error:
                raise DataError(f"{self.path}: not a whole MATLAB 7.3 file ({error})", FETCH) from error
            self._files = {os.getpid(): handle}
        return handle

    def _array(self, name: str) -> Any:
        handle = self._open()
        if name not in handle:
            raise DataError(f"{self.path}: has no {name}; it holds {', '.join(sorted(handle))}", FETCH)
        return handle[name]

    def _frame(self, name: str, number: int) -> NDArray[Any]:
        try:
            return np.asarray(self._array(name)[number])
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self.path}: {name} of frame {number + 1} is damaged ({error})", FETCH
            ) from error

    def _texts(self, name: str, numbers: Sequence[int]) -> list[str]:
        """Strings of a cell array; empty where the file has none of this name. Each costs a tenth of a millisecond."""
        handle = self._open()
        if name not in handle:
            return []
        try:
            references = np.ravel(handle[name])
            return ["".join(map(chr, np.ravel(handle[references[number]]))) for number in numbers]
        except (OSError, RuntimeError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{self.path}: {name} cannot be read ({error})", FETCH) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def read_splits(path: Path, count: int) -> Numbers:
    """trainNdxs and testNdxs of a MATLAB 5 file, as numbers from 0, each in order.

    Raises DataError where they are missing, overlap, or go beyond `count` frames.
    """
    from scipy.io import loadmat

    mend = "fetch http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat again, or remove it"
    try:
        held = loadmat(path, variable_names=["trainNdxs", "testNdxs"])
        both = [np.unique(np.ravel(held[name]).astype(np.int64)) - 1 for name in ("trainNdxs", "testNdxs")]
    except KeyError as error:
        raise DataError(f"{path}: has no {error.args[0]}", mend) from error
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise DataError(f"{path}: not a MATLAB 5 file ({error})", mend) from error
    train, test = both
    for name, numbers in (("trainNdxs", train), ("testNdxs", test)):
        if not len(numbers) or numbers[0] < 0 or numbers[-1] >= count:
            span = f"{numbers[0] + 1} to {numbers[-1] + 1}" if len(numbers) else "none"
            raise DataError(f"{path}: {name} are {span}, of {count} frames", mend)
    shared = np.intersect1d(train, test)
    if len(shared):
        raise DataError(
            f"{path}: {len(shared)} frames are both to train and to test, such as {shared[0] + 1}", mend
        )
    return tuple(train.tolist()), tuple(test.tolist())
