"""What a folder of the user's own holds beside images/: further pictures named like the images, and tables of vectors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from compactmtl.config.inputs import InputConfig
from compactmtl.config.recipe import DataConfig
from compactmtl.data.bands import BAND_SUFFIXES
from compactmtl.data.cache import Arrays
from compactmtl.data.files import some
from compactmtl.data.fit import Fit
from compactmtl.data.images import read_picture
from compactmtl.data.maps import check_beside
from compactmtl.data.names import list_files
from compactmtl.data.pixels import ImageInfo
from compactmtl.data.stored import stored_as
from compactmtl.data.tables import Values, read_numbers
from compactmtl.errors import ConfigError, DataError

Input = Path | Values  # a picture's file, or a vector's numbers
_MEND = "see docs/how-to/own-data.md for inputs beside the images"


def inputs_beside(
    top: Path, paths: Mapping[str, str], config: DataConfig, images: Collection[str], folder: Path
) -> dict[str, Mapping[str, Input]]:
    """By input that lies beside the images what each image has of it.

    Args:
        top: the data set's folder.
        paths: `inputs` of dataset.yaml, where an input does not lie under its own name.
        images: the names of the images that need each input; `folder` is where they lie.

    Raises ConfigError for a path of an input that the recipe does not name, DataError for an image without an input.
    """
    if strangers := sorted(set(paths) - set(config.others)):
        named = ", ".join(config.others) or "none"
        raise ConfigError(
            f"{top}: inputs names {strangers[0]}, which data.inputs does not name beside the first picture; those are "
            f"{named}",
            f"add it to data.inputs ({config.first!r} is read from {folder.name}/), or take it out of dataset.yaml",
        )
    found: dict[str, Mapping[str, Input]] = {}
    for name, one in config.others.items():
        place = top / paths.get(name, name if one.is_picture else f"{name}.csv")
        found[name] = _of_input(place, one, images, folder)
        if lacking := [image for image in images if image not in found[name]]:
            raise DataError(
                f"{place}: {len(lacking)} of {len(images)} images have no {one.kind} of input {name!r}: {some(lacking)}",
                "a network is given all of its inputs: add them under the images' names, or take the images out",
            )
    return found


def _of_input(place: Path, one: InputConfig, images: Collection[str], folder: Path) -> Mapping[str, Input]:
    if one.is_picture:
        return list_files(place, BAND_SUFFIXES, _MEND).files
    return read_numbers(place, one.channels).matched(images, folder)[0]


def read_inputs(inputs: tuple[tuple[str, Input], ...], fits: Mapping[str, Fit], info: ImageInfo) -> Arrays:
    """The inputs beside an image as they are stored. Raises DataError, naming both files, for a picture of another shape."""
    arrays: Arrays = {}
    for name, one in inputs:
        if isinstance(one, Path):
            arrays[stored_as(name)], read = read_picture(one, fits[name])
            check_beside(one, read.size, info, name)
        else:
            arrays[stored_as(name)] = np.array(one, np.float32)
    return arrays
