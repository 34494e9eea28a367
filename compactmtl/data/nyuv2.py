"""The `nyuv2` data set: indoor RGB-D frames with segmentation, depth and surface normals.

Source: Silberman, Hoiem, Kohli and Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen
from compactmtl.data.base import Split, image_fit
from compactmtl.data.cache import Arrays
from compactmtl.data.files import (
    FileDataset,
    Files,
    damaged,
    held_apart,
    root_folder,
    source_of,
    without_labels,
)
from compactmtl.data.fit import Fit
from compactmtl.data.nyuv2_labels import CLASS_NAMES, IGNORE
from compactmtl.data.nyuv2_layouts import Frame, Layout, derived_normals, open_layout
from compactmtl.data.nyuv2_mat import MAT
from compactmtl.data.stored import own_size
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "indoor RGB-D frames with segmentation, depth and normals; the user's own download"
DEFAULT_SIZE = (288, 384)  # of MTAN and LibMTL
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val")  # val is the official test set; there is no other

_MEND = (
    f"download {MAT} (2.8 GB) from https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html, "
    "or the .npy files of MTAN from https://github.com/lorenmt/mtan, and set data.root to their folder"
)
_LOOKED_AT = 12  # frames that a check decodes, and that a statistic is taken from
_IDENTITY = "+x+y+z"


class Options(Frozen):
    """`data.options` of nyuv2."""

    classes: Literal[13, 40, 41] = Field(13, description="13, 40 or 41: 40 and the unlabeled as one more")
    depth: Literal["filled", "raw"] = Field(
        "filled", description="of the .mat file: filled, holes filled in, or raw"
    )
    normals: Literal["auto", "stored", "derived", "none"] = Field(
        "auto",
        description="stored, derived from depth, none, or auto: stored, and derived where there are no stored ones",
    )
    normal_axes: Annotated[str, Field(pattern=r"^([+-][xyz]){3}$")] = Field(
        _IDENTITY,
        description="what of the stored normals points right, down and forward, such as +x-z+y; see the check",
    )


class NYUv2(FileDataset[Frame]):
    """Frames of one split: `segmentation`, `depth` (m) and, unless left out, `normals` (camera frame)."""

    def identifier(self, index: int) -> str:
        """The image file; of the .mat file also the frame's number, from 1."""
        frame = self._records[index]
        return f"{frame.image}#{frame.name}" if frame.image.name == MAT else str(frame.image)


def folder_of(root: str | None) -> Path:
    """The folder with the .mat file or the trees. Raises DataError with where to get them."""
    return root_folder(
        root, "nyuv2", ("nyuv2", "NYUv2", "nyu_depth_v2"), ("train/image", "val/image", MAT), _MEND
    )


def load(config: DataConfig, split: Split) -> NYUv2:
    """The frames of a split; a holdout takes whole scenes where they are known."""
    options = validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    layout = open_layout(folder, options.depth, options.classes)
    frames = _labeled(layout, options, _chosen(layout, config, split))
    lacking = without_labels(frames, _targets(options), f"the frames of {source_of(split)}")
    mean, std = _depth_statistics(layout)
    specs = {
        "segmentation": TargetSpec("mask", classes=CLASS_NAMES[options.classes], ignore_index=IGNORE),
        "depth": TargetSpec("depth", unit="m", mean=mean, std=std),
    }
    if options.normals != "none":
        specs["normals"] = TargetSpec("normals")
    reader = _reader(layout, options, image_fit(config))
    return NYUv2(config, split, specs, Files(folder, frames, reader, [layout.description, options], lacking))


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is worth knowing: (problems, notes).

    Every file is looked at, and a dozen frames of each split are decoded.
    """
    options = validate_options(Options, config.options, "data.options")
    layout = open_layout(folder_of(config.root), options.depth, options.classes)
    bad: list[str] = []
    notes = [f"read from {layout.description}; val is the official test set: select on a holdout"]
    frames: dict[Split, list[Frame]] = {}
    for split in SPLITS:
        try:
            frames[split] = _labeled(layout, options, layout.frames(split))
        except DataError as error:
            bad.append(error.message)
            continue
        notes += without_labels(frames[split], _targets(options), f"the frames of {split}")
        faults = [fault for frame in frames[split] for fault in layout.faults(frame)]
        bad += faults[:10] + ([f"... and {len(faults) - 10} more in {split}"] if len(faults) > 10 else [])
        if not faults:
            bad += damaged(_some(frames[split]), _reader(layout, options, image_fit(config)), split)
    if not bad:
        notes += _notes(layout, options, frames)
    return bad, notes


def turned(normals: NDArray[np.float32], axes: str) -> NDArray[np.float32]:
    """Normals (3, H, W) with x right, y down, z forward, of those whose channels `axes` names in this order."""
    channels = ["xyz".index(letter) for letter in axes[1::2]]
    signs = np.array([1 if sign == "+" else -1 for sign in axes[::2]], np.float32)
    return np.ascontiguousarray(normals[channels] * signs[:, None, None]) + np.float32(0)  # no -0


def fitting_axes(
    stored: Sequence[NDArray[np.float32]], derived: Sequence[NDArray[np.float32]]
) -> tuple[str, float]:
    """The `normal_axes` under which stored normals come nearest to those derived from depth, and the mean degrees."""
    best = (_IDENTITY, 180.0)
    for letters in itertools.permutations("xyz"):
        for signs in itertools.product("+-", repeat=3):
            axes = "".join(sign + letter for sign, letter in zip(signs, letters, strict=True))
            angle = _angle([turned(one, axes) for one in stored], derived)
            if angle < best[1]:
                best = (axes, angle)
    return best


def _reader(layout: Layout, options: Options, fit: Fit) -> Callable[[Frame], Arrays]:
    stored = _takes_stored(layout, options)
    if stored and len(set(options.normal_axes[1::2])) < 3:
        raise ConfigError(
            f"data.options.normal_axes: {options.normal_axes} names an axis twice",
            "name x, y and z once each, as in +x-z+y",
        )
    if not stored and options.normal_axes != _IDENTITY:
        raise ConfigError("data.options.normal_axes: no stored normals are read", "leave it out")
    return partial(_read, layout, options, fit, stored)


def _read(
    layout: Layout,
    options: Options,
    fit: Fit,
    stored: bool,  # whether normals are the layout's own
    frame: Frame,
) -> Arrays:
    image, of = layout.image(frame, fit)  # whose header is read once, for all maps
    depth = None if "depth" in frame.unknown else layout.depth(frame, None, of)
    size = of.size if depth is None else (depth.shape[1], depth.shape[2])
    arrays: Arrays = {"image": image, **own_size(size)}
    if "segmentation" in frame.unknown:
        arrays["segmentation"] = np.full(fit.size, IGNORE, np.uint8)
    else:
        arrays["segmentation"] = layout.segmentation(frame, fit, options.classes, of)
    arrays["depth"] = np.zeros((1, *fit.size), np.float32) if depth is None else fit.map(depth)
    if options.normals == "none":
        return arrays
    if "normals" in _unknown(frame, stored=stored):
        arrays["normals"] = np.zeros((3, *fit.size), np.float32)
    elif stored:
        arrays["normals"] = turned(layout.normals(frame, fit, of), options.normal_axes)
    else:
        assert depth is not None
        arrays["normals"] = derived_normals(depth, fit)
    return arrays


def _unknown(frame: Frame, *, stored: bool) -> tuple[str, ...]:
    """The targets of which a frame has no label, where normals are the layout's own or derived from depth."""
    lacking = [name for name in frame.unknown if name != "normals"]
    source = "normals" if stored else "depth"
    return (*lacking, *(["normals"] if source in frame.unknown else []))


def _labeled(layout: Layout, options: Options, frames: Sequence[Frame]) -> list[Frame]:
    """The frames with what each lacks as these options read it; those that lack everything are left out."""
    stored = _takes_stored(layout, options)
    told = [replace(frame, unknown=_unknown(frame, stored=stored)) for frame in frames]
    return [frame for frame in told if not set(_targets(options)) <= set(frame.unknown)]


def _targets(options: Options) -> tuple[str, ...]:
    return ("segmentation", "depth", *(["normals"] if options.normals != "none" else []))


def _takes_stored(layout: Layout, options: Options) -> bool:
    if options.normals == "stored" and not layout.has_normals:
        raise ConfigError(
            f"data.options.normals: {layout.description} has no stored normals",
            "set it to derived, or put them into {train,val}/normal",
        )
    return options.normals == "stored" or (options.normals == "auto" and layout.has_normals)


def _chosen(layout: Layout, config: DataConfig, split: Split) -> list[Frame]:
    """The frames of a split; for a holdout whole scenes are set aside, as frames of one scene look alike."""
    frames = layout.frames(source_of(split))
    if split == "val" or config.holdout == 0:
        return frames
    scenes = layout.scenes(frames)
    if not all(scenes):
        return held_apart(frames, config, split)
    held: set[str] = set()
    count, least = 0, max(round(len(frames) * config.holdout), 1)
    ranked = sorted(set(scenes), key=lambda scene: hashlib.sha256(scene.encode()).digest())
    for scene in ranked[:-1]:  # one is left to train on
        if count >= least:
            break
        held.add(scene)
        count += scenes.count(scene)
    return [
        frame for frame, scene in zip(frames, scenes, strict=True) if (scene in held) == (split == "holdout")
    ]


def _depth_statistics(layout: Layout) -> tuple[float, float]:
    """Mean and standard deviation over some frames to train on, for a head that starts at the mean."""
    frames = [frame for frame in layout.frames("train") if "depth" not in frame.unknown]
    known = [depth[depth > 0] for depth in (layout.depth(f, (48, 64), layout.info(f)) for f in _some(frames))]
    values = np.concatenate([np.zeros(0, np.float32), *known])
    if not values.size:
        raise DataError(f"{layout.description}: depth is unknown everywhere", _MEND)
    return float(values.mean()), float(max(values.std(), 1e-3))


def _notes(layout: Layout, options: Options, frames: dict[Split, list[Frame]]) -> list[str]:
    if options.normals == "none":
        return []
    if not _takes_stored(layout, options):
        return ["normals are derived from depth with the known camera"]
    notes = []
    size = (120, 160)
    with_normals = {s: [f for f in frames[s] if "normals" not in f.unknown] for s in SPLITS}
    stored = {s: [layout.normals(f, size, layout.info(f)) for f in _some(with_normals[s])] for s in SPLITS}
    notes += [
        f"the stored normals of {s} are all unknown" for s in SPLITS if not any(n.any() for n in stored[s])
    ]
    both = [f for f in with_normals["train"] if "depth" not in f.unknown]
    stored["train"] = [layout.normals(f, size, layout.info(f)) for f in _some(both)]
    derived = [derived_normals(layout.depth(f, None, layout.info(f)), size) for f in _some(both)]
    if not any(n.any() for n in stored["train"]) or not any(n.any() for n in derived):
        return notes
    now = _angle([turned(one, options.normal_axes) for one in stored["train"]], derived)
    axes, angle = fitting_axes(stored["train"], derived)
    text = f"the stored normals are {now:.0f} degrees (mean) from those that depth gives"
    if angle < 0.8 * now:
        text += f"; with options.normal_axes={axes} it is {angle:.0f}: their axes are not x right, y down, z forward"
    return [*notes, text]


def _angle(some: Sequence[NDArray[np.float32]], others: Sequence[NDArray[np.float32]]) -> float:
    """Mean angle in degrees over all pixels that both know."""
    angles = []
    for one, other in zip(some, others, strict=True):
        both = one.any(0) & other.any(0)
        angles.append(np.degrees(np.arccos((one * other).sum(0)[both].clip(-1, 1))))
    values = np.concatenate(angles)
    return float(values.mean()) if values.size else 180.0


def _some(frames: Sequence[Frame]) -> list[Frame]:
    """Up to a dozen, spread evenly."""
    if not frames:
        return []
    return [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, _LOOKED_AT).astype(int))]
