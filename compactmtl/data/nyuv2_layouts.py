"""The layouts in which NYUv2 is found, each read to the same arrays.

- the labelled .mat file, as distributed;
- a folder of PNG files that tools/prepare_nyuv2.py makes of it: {train,val}/{image,label,depth,normal}/0001.png with
  NYU40 labels from 0 (255 unlabeled), depth in 1/5000 m, and normals as n = value / 127.5 - 1;
- the .npy files of MTAN and LibMTL: {train,val}/{image,label,depth,normal}/0.npy, channels last, image in [0, 1], 13
  classes (-1 unlabeled), depth in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from compactmtl.artifacts.files import parse_json
from compactmtl.data.base import Split
from compactmtl.data.files import Record, images_in
from compactmtl.data.fit import Fit, fit_to
from compactmtl.data.formats import mask_at, metres, read_depth_units, read_mask, read_normals
from compactmtl.data.images import read_picture
from compactmtl.data.maps import check_npy, check_png, relabel
from compactmtl.data.normals import Intrinsics, normals_from_depth
from compactmtl.data.npy import npy_info, npy_mask, npy_normals, npy_picture, npy_positive, numbered
from compactmtl.data.nyuv2_labels import CLASSES_13, CLASSES_40, IGNORE, class_table, label_table
from compactmtl.data.nyuv2_mat import MAT, MatFile
from compactmtl.data.pixels import ImageInfo, read_picture_size
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.placement import Size

# Of the color camera, onto which the labelled file's depth is projected. Source: the data set's toolbox.
CAMERA = Intrinsics((480, 640), (518.857901, 519.469611), (325.582449, 253.736166))
DEPTH_UNITS = 5000.0  # to the metre, in the PNG files
SCENES = "scenes.json"
PARTS = ("image", "label", "depth", "normal")
TARGETS = {"label": "segmentation", "depth": "depth", "normal": "normals"}

DepthKind = Literal["filled", "raw"]


@dataclass(frozen=True)
class Frame(Record):
    """One frame and its number in the .mat file."""

    number: int = 0


class Layout(Protocol):
    """One way in which the frames are kept."""

    description: str
    has_normals: bool

    def frames(self, split: Split) -> list[Frame]:
        """Those of `train` or `val`, in order. Raises DataError where there are none."""

    def scenes(self, frames: Sequence[Frame]) -> list[str]:
        """The scene of each; empty names where it is not known."""

    def image(self, frame: Frame, size: Size | Fit) -> tuple[NDArray[np.uint8], ImageInfo]:
        """uint8 (C, H, W), and what maps of it must fit, which the others take as `of`."""

    def info(self, frame: Frame) -> ImageInfo:
        """What maps of an image must fit, its pixels not decoded."""

    def segmentation(self, frame: Frame, size: Size | Fit, classes: int, of: ImageInfo) -> NDArray[np.uint8]:
        """Class indices (H, W), 255 where unlabeled."""

    def depth(self, frame: Frame, size: Size | Fit | None, of: ImageInfo) -> NDArray[np.float32]:
        """Metres (1, H, W), 0 where unknown; as stored with size None."""

    def normals(self, frame: Frame, size: Size | Fit, of: ImageInfo) -> NDArray[np.float32]:
        """As stored, float (3, H, W); 0 where unknown."""

    def faults(self, frame: Frame) -> list[str]:
        """What is wrong with a frame's files, by a look at each that is quick."""


def open_layout(folder: Path, depth: DepthKind, classes: int) -> Layout:
    """The layout of a folder; files made for quick reading come before the .mat file.

    Raises ConfigError for options that the layout cannot give.
    """
    train = folder / "train" / "image"
    trees: tuple[tuple[str, Callable[[Path], Layout]], ...] = ((".png", PngTree), (".npy", NpyTree))
    for suffix, tree in trees:
        if train.is_dir() and any(path.suffix == suffix for path in train.iterdir()):
            if depth == "raw":
                raise ConfigError(f"data.options.depth: raw depth is in {MAT} alone", "leave it out")
            if suffix == ".npy" and classes != 13:
                raise ConfigError(
                    f"data.options.classes: {folder} has 13 classes, not {classes}",
                    f"set it to 13, or use {MAT}",
                )
            return tree(folder)
    return MatLayout(folder, depth)


class MatLayout:
    """The .mat file."""

    has_normals = False

    def __init__(self, folder: Path, depth: DepthKind) -> None:
        self._file = MatFile(folder / MAT)
        self._kind = depth
        beside = "splits.mat" if (folder / "splits.mat").is_file() else "the official one"
        self.description = f"{self._file.path}, split: {beside}"

    def frames(self, split: Split) -> list[Frame]:
        numbers = self._file.split()[0 if split == "train" else 1]
        return [Frame(f"{i + 1:04d}", self._file.path, (), i) for i in numbers]

    def scenes(self, frames: Sequence[Frame]) -> list[str]:
        names = self._file.scenes()
        return [names[frame.number] for frame in frames]

    def image(self, frame: Frame, size: Size | Fit) -> tuple[NDArray[np.uint8], ImageInfo]:
        return fit_to(size).rgb(self._file.image(frame.number), str(frame.image)), self.info(frame)

    def info(self, frame: Frame) -> ImageInfo:
        return ImageInfo(frame.image, self._file.size)

    def segmentation(self, frame: Frame, size: Size | Fit, classes: int, of: ImageInfo) -> NDArray[np.uint8]:
        where = f"{frame.image}: frame {frame.name}"
        labels = relabel(self._file.labels(frame.number), label_table(classes), where)
        return mask_at(labels, size, IGNORE)

    def depth(self, frame: Frame, size: Size | Fit | None, of: ImageInfo) -> NDArray[np.float32]:
        depth = self._file.depth(frame.number, self._kind)[None]
        return depth if size is None else fit_to(size).map(depth)

    def normals(self, frame: Frame, size: Size | Fit, of: ImageInfo) -> NDArray[np.float32]:
        raise DataError(f"{frame.image}: has no normals", "derive them from depth")

    def faults(self, frame: Frame) -> list[str]:
        return []  # a look inside is a whole read; the file's length was checked when it was opened


class _Tree:
    """Folders {train,val}/{image,label,depth,normal} of files that have one name in each."""

    suffix: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.has_normals = (folder / "train" / "normal").is_dir()
        self.description = f"{folder}, {self.suffix} files"

    def frames(self, split: Split) -> list[Frame]:
        images = self._images(self.folder / split / "image")
        if not images:
            raise DataError(
                f"{self.folder / split / 'image'}: no {self.suffix} files",
                "train/ and val/ are both needed; see tools/prepare_nyuv2.py",
            )
        frames = [self._frame(image) for image in images]
        labeled = [frame for frame in frames if len(frame.unknown) < len(self._parts())]
        if not labeled:
            raise DataError(
                f"{self.folder / split}: no image has a file of the same name in {', '.join(self._parts())}",
                "see tools/prepare_nyuv2.py",
            )
        return labeled

    def _frame(self, image: Path) -> Frame:
        files = {part: self._beside(image, part) for part in self._parts()}
        unknown = tuple(TARGETS[part] for part, path in files.items() if not path.is_file())
        return Frame(image.stem, image, tuple(files.values()), unknown=unknown)

    def scenes(self, frames: Sequence[Frame]) -> list[str]:
        path = self.folder / SCENES
        if not path.is_file():
            return [""] * len(frames)
        try:
            held = parse_json(path.read_text("utf-8"))
            return [str(held.get(frame.name, "")) for frame in frames]
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}: not names with their scenes ({error})", "remove it or make it again"
            ) from error

    def _parts(self) -> tuple[str, ...]:
        return PARTS[1:] if self.has_normals else PARTS[1:3]

    def _images(self, folder: Path) -> list[Path]:
        return [path for path in images_in(folder) if path.suffix == self.suffix]

    @staticmethod
    def _beside(image: Path, part: str) -> Path:
        return image.parent.parent / part / image.name


class PngTree(_Tree):
    """The PNG files that tools/prepare_nyuv2.py makes."""

    suffix = ".png"

    def image(self, frame: Frame, size: Size | Fit) -> tuple[NDArray[np.uint8], ImageInfo]:
        return read_picture(frame.image, size)

    def info(self, frame: Frame) -> ImageInfo:
        return read_picture_size(frame.image)

    def segmentation(self, frame: Frame, size: Size | Fit, classes: int, of: ImageInfo) -> NDArray[np.uint8]:
        path = frame.files[0]
        return class_table(classes)[read_mask(path, size, len(CLASSES_40), IGNORE, of)]

    def depth(self, frame: Frame, size: Size | Fit | None, of: ImageInfo) -> NDArray[np.float32]:
        units = read_depth_units(frame.files[1], of)
        return metres(units, size or (units.shape[0], units.shape[1]), DEPTH_UNITS)

    def normals(self, frame: Frame, size: Size | Fit, of: ImageInfo) -> NDArray[np.float32]:
        return read_normals(frame.files[2], size, of)

    def faults(self, frame: Frame) -> list[str]:
        return [fault for path in there(frame) if (fault := check_png(path))]


class NpyTree(_Tree):
    """The .npy files of MTAN and LibMTL."""

    suffix = ".npy"

    def _images(self, folder: Path) -> list[Path]:
        return numbered(folder)

    def image(self, frame: Frame, size: Size | Fit) -> tuple[NDArray[np.uint8], ImageInfo]:
        return npy_picture(frame.image, size)

    def info(self, frame: Frame) -> ImageInfo:
        return npy_info(frame.image)

    def segmentation(self, frame: Frame, size: Size | Fit, classes: int, of: ImageInfo) -> NDArray[np.uint8]:
        return npy_mask(frame.files[0], size, len(CLASSES_13), IGNORE)

    def depth(self, frame: Frame, size: Size | Fit | None, of: ImageInfo) -> NDArray[np.float32]:
        return npy_positive(frame.files[1], size)

    def normals(self, frame: Frame, size: Size | Fit, of: ImageInfo) -> NDArray[np.float32]:
        return npy_normals(frame.files[2], size)

    def faults(self, frame: Frame) -> list[str]:
        return [fault for path in there(frame) if (fault := check_npy(path))]


def there(frame: Frame) -> list[Path]:
    """The files of a frame; a label that is not there is unknown."""
    return [frame.image, *(path for path in frame.files if path.is_file())]


def derived_normals(depth: NDArray[np.float32], size: Size | Fit) -> NDArray[np.float32]:
    """Normals (3, H, W) at `size` of a whole depth map (1, h, w), with NYUv2's camera."""
    normals = normals_from_depth(depth[0], CAMERA.resized((depth.shape[1], depth.shape[2])))
    return fit_to(size).map(normals)
