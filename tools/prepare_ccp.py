"""Convert the Clothing Co-Parsing repository to images, label maps and tags that need no MATLAB reader.

git clone https://github.com/bearpaw/clothing-co-parsing
python tools/prepare_ccp.py clothing-co-parsing ~/data/ccp --height 384

Writes images/, labels/ (0 to 58) and tags.json. With --height, larger photos are made smaller: photos smoothly, label
maps by the nearest pixel. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from compactmtl.data.ccp import CLASSES, IMAGES, LABELS, TAGS
from compactmtl.data.convert import Job, convert, copy_file, run_tool, save_png
from compactmtl.data.files import images_in
from compactmtl.data.images import read_image
from compactmtl.data.maps import nearest
from compactmtl.errors import DataError


def read_mat(path: Path, key: str) -> NDArray[Any]:
    """One array of a .mat file. Raises DataError, naming the file."""
    try:
        array: NDArray[Any] = loadmat(path, variable_names=[key])[key]
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{path}: no array {key} ({error})", "fetch the file again") from error
    return array


def smaller(size: tuple[int, int], height: int | None) -> tuple[int, int]:
    """The size (height, width) that a photo gets: no larger, of the same shape."""
    if height is None or size[0] <= height:
        return size
    return height, max(round(size[1] * height / size[0]), 1)


def prepare(source: Path, out: Path, height: int | None) -> int:
    """Convert photos that have pixel labels, and all tags; gives the exit code: 2 where a photo could not be."""
    labels = sorted((source / "annotations" / "pixel-level").glob("*.mat"))
    if not labels:
        raise DataError(
            f"{source}: no annotations/pixel-level/*.mat", "clone github.com/bearpaw/clothing-co-parsing"
        )
    photos = {path.stem: path for path in images_in(source / "photos")}

    def job(mat: Path) -> Job:
        image, label = out / IMAGES / f"{mat.stem}.jpg", out / LABELS / f"{mat.stem}.png"

        def make() -> None:
            truth = read_mat(mat, "groundtruth")
            if truth.ndim != 2 or truth.max() >= len(CLASSES):
                raise DataError(f"{mat}: groundtruth {truth.shape} up to {truth.max()}, expected 0 to 58")
            if mat.stem not in photos:
                raise DataError(f"{source / 'photos' / mat.stem}.jpg: no such photo")
            size = smaller((truth.shape[0], truth.shape[1]), height)
            pixels = read_image(photos[mat.stem])
            if pixels.shape[1:] != truth.shape:
                raise DataError(f"{photos[mat.stem]}: {pixels.shape[1:]}, its labels are {truth.shape}")
            if size == truth.shape:
                copy_file(photos[mat.stem], image)
            else:
                save_jpeg(image, read_image(photos[mat.stem], size))
            save_png(label, nearest(truth.astype(np.uint8), size))

        return Job((image, label), make)

    outcome = convert([job(mat) for mat in labels], "converting")
    write_tags(source, out)
    print(f"{outcome.made} photos converted, {outcome.skipped} were there, into {out}")
    for fault in outcome.faults:
        print(f"problem  {fault}", file=sys.stderr)
    return 2 if outcome.faults else 0


def save_jpeg(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write an image (3, H, W), whole or not at all."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
        temporary, format="JPEG", quality=92
    )
    temporary.replace(path)


def write_tags(source: Path, out: Path) -> None:
    """tags.json: the classes, those in each converted label map, and those of photos with tags alone."""
    from compactmtl.data.formats import read_mask

    pixels = {
        path.stem: np.unique(read_mask(path, None, len(CLASSES))).tolist() for path in images_in(out / LABELS)
    }
    alone = {
        path.stem: sorted(int(tag) for tag in read_mat(path, "tags").reshape(-1))
        for path in sorted((source / "annotations" / "image-level").glob("*.mat"))
    }
    content = {"classes": list(CLASSES), "tags_from_pixels": pixels, "tags_image_level_only": alone}
    temporary = out / f".{TAGS}.tmp"
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(out / TAGS)


def main(argv: list[str] | None = None) -> int:
    """The command; 0 where all is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the cloned repository")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--height", type=int, help="make larger photos this high, in pixels")
    args = parser.parse_args(argv)
    if args.height is not None and args.height < 1:
        parser.error("--height needs at least 1")
    return run_tool(lambda: prepare(args.source, args.out, args.height))


if __name__ == "__main__":
    sys.exit(main())
