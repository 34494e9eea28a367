"""Mask AP of instances as the COCO benchmark computes it, by pycocotools, at each image's own size.

Source: arXiv:1405.0312 (Microsoft COCO) and pycocotools.cocoeval.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.errors import DataError, MissingDependencyError
from compactmtl.tasks.common import nothing_valid
from compactmtl.tasks.instance_decoding import Instances
from compactmtl.tasks.placement import Placement

LONGEST_OUTLINE = 1_000_000  # pixels around a polygon: of real ones a few thousand
Rle = Mapping[str, Any]  # COCO's run lengths: size (height, width) and counts


@dataclass(frozen=True)
class InstanceReference:
    """The instances of one image at its own size, for scoring.

    annotations: each with class index `label`, `segmentation` in any form of COCO (polygons, run lengths), `area` in
    pixels and `iscrowd`. `place` says where the image lies on the network's picture; without it the picture was stretched.
    """

    height: int
    width: int
    annotations: tuple[Mapping[str, Any], ...]
    place: Placement | None = None


class InstanceMetrics:
    """Detections and references of a whole split."""

    def __init__(self, name: str, classes: Sequence[str], decode: Callable[[Tensor], Instances]) -> None:
        self._name, self._classes, self._decode = name, classes, decode
        self._mask = mask_module()
        self._images: list[dict[str, Any]] = []
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._begun: list[
            tuple[int, int, int]
        ] = []  # how many images, references and detections each update met

    def update(
        self, output: Tensor, target: Tensor, references: Sequence[InstanceReference] | None = None
    ) -> None:
        """Add a batch: output (B, K + 4, h, w), target (B, 2, H, W).

        With `references`, one an image, the instances are scored at the images' own sizes against these and the
        target only says which part of the output shows the image; else they are scored against the target.
        An image of which nothing is known is left out; what is found where nothing is known is no mistake.
        """
        self._begun.append((len(self._images), len(self._truth), len(self._found)))
        for number, (one, instances) in enumerate(zip(output.cpu(), target.cpu(), strict=True)):
            if bool(self._unknown(instances).all()):
                continue
            shown = (int(instances.shape[-2]), int(instances.shape[-1]))
            reference = references[number] if references is not None else self._from_target(instances)
            size = (reference.height, reference.width)
            image = len(self._images) + 1
            self._images.append({"id": image, "height": size[0], "width": size[1]})
            for annotation in reference.annotations:
                self._truth.append(self._annotation(image, annotation, size))
            self._add_found(image, self._decode(one), shown, size, reference.place)

    def listed(self) -> list[Any]:
        """Images, references and detections of each update; its images are numbered from 1."""
        begun = [*self._begun, (len(self._images), len(self._truth), len(self._found))]
        return [
            {
                "images": [_moved(one, "id", -images) for one in self._images[images:until_images]],
                "truth": [_moved(one, "image_id", -images) for one in self._truth[truth:until_truth]],
                "found": [_moved(one, "image_id", -images) for one in self._found[found:until_found]],
            }
            for (images, truth, found), (until_images, until_truth, until_found) in pairwise(begun)
        ]

    def take(self, listed: Sequence[Any]) -> None:
        """Put what `listed` gave, of any number of updates, in the place of what is there."""
        self._images, self._truth, self._found, self._begun = [], [], [], []
        for one in listed:
            before = len(self._images)
            self._begun.append((before, len(self._truth), len(self._found)))
            self._images += [_moved(image, "id", before) for image in one["images"]]
            self._truth += [_moved(annotation, "image_id", before) for annotation in one["truth"]]
            self._found += [_moved(annotation, "image_id", before) for annotation in one["found"]]

    def compute(self) -> dict[str, float]:
        """Raises DataError where the split has no instance that counts."""
        if all(one["iscrowd"] for one in self._truth):
            raise nothing_valid(self._name)
        from pycocotools.cocoeval import COCOeval

        with redirect_stdout(io.StringIO()):  # pycocotools talks
            scoring = COCOeval(self._dataset(self._truth), self._dataset(self._found), "segm")
            scoring.evaluate()
            scoring.accumulate()
            scoring.summarize()
        ap, ap50, ap75 = (float(value) for value in scoring.stats[:3])
        return {"ap": ap, "ap50": ap50, "ap75": ap75}

    def _dataset(self, annotations: list[dict[str, Any]]) -> Any:
        from pycocotools.coco import COCO

        dataset = COCO()
        dataset.dataset = {
            "images": self._images,
            "annotations": [one | {"id": number} for number, one in enumerate(annotations, 1)],
            "categories": [
                {"id": number, "name": name} for number, name in enumerate(self._classes, 1)
            ],  # from 1: an id of 0 counts as "none" in places
        }
        dataset.createIndex()
        return dataset

    def _annotation(self, image: int, given: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        rle = to_rle(given["segmentation"], size)
        return {
            "image_id": image,
            "category_id": int(given["label"]) + 1,
            "segmentation": rle,
            "area": float(given["area"]),
            "bbox": self._mask.toBbox(rle).tolist(),
            "iscrowd": int(given["iscrowd"]),
        }

    def _add_found(
        self,
        image: int,
        instances: Instances,
        shown: tuple[int, int],
        size: tuple[int, int],
        place: Placement | None,
    ) -> None:
        numbers = instances.numbers[: shown[0], : shown[1]]
        if place is not None:  # less the padding, and with nothing where the image was cut off
            numbers = torch.from_numpy(place.take(numbers.numpy(), 0))
        for number, (label, score) in enumerate(
            zip(instances.classes.tolist(), instances.scores.tolist(), strict=True), 1
        ):
            rle = self._mask.encode(np.asfortranarray(resize_mask(numbers == number, size).numpy()))
            area = float(self._mask.area(rle))
            if area == 0:  # cut off with the padding
                continue
            self._found.append(
                {
                    "image_id": image,
                    "category_id": label + 1,
                    "segmentation": rle,
                    "area": area,
                    "bbox": self._mask.toBbox(rle).tolist(),
                    "score": score,
                    "iscrowd": 0,
                }
            )

    def _unknown(self, target: Tensor) -> Tensor:
        """Where a map (2, H, W) knows of no class what is there: bool (H, W)."""
        numbers, labels = target
        unknown: Tensor = (numbers < 0) & ((labels < 0) | (labels >= len(self._classes)))
        return unknown

    def _from_target(self, target: Tensor) -> InstanceReference:
        """The reference of a map (2, H, W) at its own size: each class's crowd pixels are one crowd, and unknown pixels
        are in the crowd of every class."""
        unknown = self._unknown(target).numpy()
        numbers, labels = target.numpy()
        annotations: list[Mapping[str, Any]] = []
        for number in np.unique(numbers[numbers > 0]).tolist():
            mask = numbers == number
            annotations.append(self._drawn(mask, int(labels[mask][0]), crowd=False))
        for label in range(len(self._classes)):
            crowd = unknown | ((numbers < 0) & (labels == label))
            if crowd.any():
                annotations.append(self._drawn(crowd, label, crowd=True))
        return InstanceReference(numbers.shape[0], numbers.shape[1], tuple(annotations))

    def _drawn(self, mask: NDArray[np.bool_], label: int, *, crowd: bool) -> Mapping[str, Any]:
        rle = self._mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        area = float(self._mask.area(rle))
        return {"label": label, "segmentation": rle, "area": area, "iscrowd": int(crowd)}


def _moved(one: Mapping[str, Any], key: str, by: int) -> dict[str, Any]:
    """An image or annotation with its number under `key` moved; run lengths as text, which JSON can hold."""
    moved = {**one, key: one[key] + by}
    rle = one.get("segmentation")
    if rle is not None and isinstance(rle["counts"], bytes):
        moved["segmentation"] = {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}
    return moved


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A bool mask (H, W) as uint8 of `size`: interpolated between pixels, at least one half counts as inside."""
    if tuple(mask.shape) == size:
        return mask.to(torch.uint8)
    value = F.interpolate(mask[None, None].float(), size=size, mode="bilinear", align_corners=False)
    return (value[0, 0] >= 0.5).to(torch.uint8)


def _check_outline(polygon: Sequence[float]) -> None:
    """Raise ValueError for corners that are no numbers, or so far apart that drawing the outline ends the process: memory
    for each of its pixels is asked for, and its lack is not noticed.
    """
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 1 or len(corners) % 2 or not np.isfinite(corners).all():
        raise ValueError("a polygon is pairs of finite numbers x and y")
    corners = corners.reshape(-1, 2)
    length = float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())
    if max(length, float(np.abs(corners).max())) > LONGEST_OUTLINE:
        raise ValueError(f"a polygon is {length:.3g} pixels long, more than {LONGEST_OUTLINE:,}")


def to_rle(segmentation: Any, size: tuple[int, int]) -> Rle:
    """COCO's polygons, run lengths or compressed run lengths as compressed run lengths.

    Raises DataError where they are none of these or of another size.
    """
    mask = mask_module()
    height, width = size
    try:
        if isinstance(segmentation, list):
            polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
            if len(polygons) < 1:
                raise ValueError("no polygon of three corners or more")
            for polygon in polygons:
                _check_outline(polygon)
            merged: Rle = mask.merge(mask.frPyObjects(polygons, height, width))
            return merged
        if tuple(segmentation["size"]) != size:
            raise ValueError(f"run lengths of {tuple(segmentation['size'])} in an image of {size}")
        if isinstance(segmentation["counts"], list):
            _check_lengths(segmentation["counts"], height * width)
            made: Rle = mask.frPyObjects(segmentation, height, width)
            return made
        _check_lengths(_uncompressed(segmentation["counts"]), height * width)
        return {"size": [height, width], "counts": segmentation["counts"]}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"a segmentation is neither polygons nor run lengths of COCO: {error}",
            "look at the data set: `compactmtl data check NAME root=FOLDER`",
        ) from error


def _check_lengths(lengths: Sequence[int], pixels: int) -> None:
    """Raise ValueError for run lengths that are not of so many pixels: pycocotools leaves the rest of a mask as the memory was.

    A length below 0 or with a fraction is none: there they become other lengths.
    """
    if sum(lengths) != pixels or any(one < 0 or one != int(one) for one in lengths):
        raise ValueError(f"run lengths of {sum(lengths)} pixels in an image of {pixels}")


def _uncompressed(counts: str | bytes) -> list[int]:
    """Run lengths of COCO's text: five bits a letter, the lowest first, each length from the fourth on as its difference from the last but one.

    Source: rleFrString of pycocotools. Raises ValueError or IndexError where the text breaks off.
    """
    letters = [letter - 48 for letter in (counts.encode() if isinstance(counts, str) else counts)]
    lengths: list[int] = []
    place = 0
    while place < len(letters):
        value, bits, letter = 0, 0, 0x20
        while letter & 0x20:
            letter = letters[place]
            value |= (letter & 0x1F) << bits
            place, bits = place + 1, bits + 5
        if letter & 0x10:
            value -= 1 << bits
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def mask_module() -> ModuleType:
    """pycocotools.mask. Raises MissingDependencyError where the package is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingDependencyError(
            "instances need pycocotools, which is not installed", "pip install 'compactmtl[datasets]'"
        ) from error
    module: ModuleType = mask
    return module
