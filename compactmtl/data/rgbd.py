"""RGB-D folders, such as 7-Scenes: <split>/rgb, <split>/depth (16-bit) and, where there are some, <split>/normal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from compactmtl.artifacts.files import parse_json
from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen
from compactmtl.data.base import Split, image_fit
from compactmtl.data.cache import Arrays
from compactmtl.data.files import (
    FileDataset,
    Files,
    Record,
    damaged,
    held_apart,
    images_in,
    root_folder,
    some,
    source_of,
)
from compactmtl.data.formats import metres, read_depth_units, read_normals
from compactmtl.data.images import read_picture
from compactmtl.data.normals import Intrinsics, normals_from_depth
from compactmtl.data.stored import own_size
from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "RGB-D frames with depth and normals, 7-Scenes style; the user's own download"
DEFAULT_SIZE = (120, 160)
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
CAMERA = "camera.json"

_INTRINSICS = re.compile(r"intrinsics_(?P<width>\d+)x(?P<height>\d+)")
_MEND = (
    "convert a 7-Scenes download (https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes) with "
    "tools/prepare_sevenscenes.py, or make train/rgb/*.jpg, train/depth/*.png and the same for val"
)


class Options(Frozen):
    """`data.options` of rgbd."""

    units_per_metre: Annotated[float, Field(gt=0)] = Field(
        1000.0, description="what one metre is in the depth files: 1000 for millimetres"
    )
    max_depth: Annotated[float, Field(gt=0)] | None = Field(
        None, description="metres beyond which depth counts as unknown"
    )
    normals: Literal["files", "depth", "none"] | None = Field(
        None,
        description="from <split>/normal (files), from depth and camera.json (depth), or none; "
        "by default files where the folder is there",
    )


@dataclass(frozen=True)
class Frame(Record):
    """One image with its depth and, perhaps, its normals."""

    depth: Path | None = None
    normal: Path | None = None


def folder_of(root: str | None) -> Path:
    """The folder with train/rgb. Raises DataError with what to make of a download."""
    inner = ("rgbd", "sevenscenes", "7scenes", "sevenscenes_redkitchen")
    return root_folder(root, "rgbd", inner, ("train/rgb", "val/rgb", "test/rgb"), _MEND)


def list_split(folder: Path, split: Split, *, with_normals: bool) -> tuple[list[Frame], list[str]]:
    """Frames of `<split>/rgb` that have depth (or normals, where asked), and the names of those that lack one.

    What a frame has no file of is unknown there. Raises DataError for a missing folder, or one without such a frame.
    """
    here = folder / split
    depths = {path.stem: path for path in images_in(here / "depth")}
    normals = {path.stem: path for path in images_in(here / "normal")} if with_normals else {}
    frames: list[Frame] = []
    partial: list[str] = []
    for image in images_in(here / "rgb"):
        depth, normal = depths.get(image.stem), normals.get(image.stem)
        lacking = (
            *(["depth"] if depth is None else []),
            *(["normals"] if normal is None and with_normals else []),
        )
        if lacking:
            partial.append(image.name)
        if depth is not None or normal is not None:
            files = tuple(path for path in (depth, normal) if path is not None)
            frames.append(Frame(image.stem, image, files, depth, normal, unknown=lacking))
    for part in ("rgb", "depth", *(["normal"] if with_normals else [])):
        if not (here / part).is_dir():
            raise DataError(f"{here / part}: no such folder", _MEND)
    if not frames:
        raise DataError(f"{here}: no image of rgb/ has a file of the same name in another folder", _MEND)
    return frames, partial


def read_camera(folder: Path, size: tuple[int, int]) -> Intrinsics:
    """The camera of pictures of `size` (height, width) from camera.json: a matrix `intrinsics_<width>x<height>`.

    One of another size serves where its shape is the same. Raises DataError, naming the file, where none fits.
    """
    path = folder / CAMERA
    hint = 'write {"intrinsics_640x480": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]}, or set data.options.normals=none'
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; normals from depth need the camera", hint) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not readable JSON ({error})", hint) from error
    for key, matrix in content.items() if isinstance(content, dict) else ():
        match = _INTRINSICS.fullmatch(key)
        if match is None:
            continue
        width, height = int(match["width"]), int(match["height"])
        if width * size[0] == height * size[1]:
            return _intrinsics(path, key, matrix, (height, width), hint).resized(size)
    raise DataError(f"{path}: no intrinsics of pictures shaped like {size[1]}x{size[0]}", hint)


def load(config: DataConfig, split: Split) -> FileDataset[Frame]:
    """The frames of a split. Targets: `depth` (metres) and, where there are some, `normals` (camera frame)."""
    options = validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    source = _source_of_normals(folder, options)
    frames, lacking = list_split(folder, source_of(split), with_normals=source == "files")
    specs = {"depth": TargetSpec("depth", unit="m")}
    if source != "none":
        specs["normals"] = TargetSpec("normals")
    files = Files(
        folder,
        held_apart(frames, config, split),
        _reader(config, options, folder, source),
        _camera_text(folder) if source == "depth" else None,
        _notes(source_of(split), lacking),
    )
    return FileDataset(config, split, specs, files)


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is passed over: (problems, notes)."""
    options = validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    source = _source_of_normals(folder, options)
    bad: list[str] = []
    notes: list[str] = []
    if options.normals is None and source == "none":
        notes.append(
            "no folder normal/ in train/: normals are not offered; options.normals=depth derives them"
        )
    for split in SPLITS:
        if split == "test" and not (folder / "test").is_dir():
            continue  # nothing in training needs it
        try:
            frames, lacking = list_split(folder, split, with_normals=source == "files")
        except DataError as error:
            bad.append(error.message)
            continue
        notes += _notes(split, lacking)
        bad += damaged(frames, _reader(config, options, folder, source), split)
    return bad, notes


def _notes(split: Split, partial: Sequence[str]) -> list[str]:
    said = f"{len(partial)} frames of {split} lack depth or normals, which are unknown there: {some(partial)}"
    return [said] if partial else []


def _source_of_normals(folder: Path, options: Options) -> str:
    if options.normals is not None:
        return options.normals
    return "files" if (folder / "train" / "normal").is_dir() else "none"


def _reader(config: DataConfig, options: Options, folder: Path, normals: str) -> Callable[[Frame], Arrays]:
    return partial(_read, config, options, folder, normals)


def _read(config: DataConfig, options: Options, folder: Path, normals: str, frame: Frame) -> Arrays:
    fit = image_fit(config)
    image, picture = read_picture(frame.image, fit)
    arrays: Arrays = {"image": image, **own_size(picture.size)}
    units = None if frame.depth is None else read_depth_units(frame.depth, picture)
    if units is None:
        arrays["depth"] = np.zeros((1, *fit.size), np.float32)
    else:
        arrays["depth"] = metres(units, fit, options.units_per_metre, options.max_depth, picture.size)
    if normals == "files":
        unknown = np.zeros((3, *fit.size), np.float32)
        arrays["normals"] = unknown if frame.normal is None else read_normals(frame.normal, fit, picture)
    elif normals == "depth" and units is not None:  # each such frame has depth
        whole = metres(units, units.shape, options.units_per_metre, options.max_depth)[0]
        # At the file's own resolution: the fit needs neighbors that lie close on the surface.
        derived = normals_from_depth(whole, read_camera(folder, units.shape))
        arrays["normals"] = fit.map(derived, 0, picture.size)
    return arrays


def _intrinsics(path: Path, key: str, matrix: Any, size: tuple[int, int], hint: str) -> Intrinsics:
    try:
        (fx, _, cx), (_, fy, cy) = matrix[0], matrix[1]
        focal, center = (float(fx), float(fy)), (float(cx), float(cy))
        if min(focal) <= 0:
            raise ValueError("a focal length is not positive")
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path}: {key} is no camera matrix ({error})", hint) from error
    return Intrinsics(size, focal, center)


def _camera_text(folder: Path) -> str:
    try:
        return (folder / CAMERA).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # reading the first frame says what is wrong
