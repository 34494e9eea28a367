r"""Unpack COCO 2017's archives into the folders that `compactmtl` reads.

python tools/prepare_coco.py ~/Downloads/train2017.zip ~/Downloads/val2017.zip \
    ~/Downloads/annotations_trainval2017.zip ~/Downloads/stuffthingmaps_trainval2017.zip --out data/coco

Only what is read is unpacked: the images, the instances' annotations and, where given, COCO-Stuff's maps. Interrupted,
run it again.
"""

from __future__ import annotations

import sys
from pathlib import PurePosixPath

from compactmtl.data.archives import unpack_tool
from compactmtl.data.coco import MAPS

_SPLITS = ("train2017", "val2017")
_ANNOTATIONS = tuple(f"instances_{split}.json" for split in _SPLITS)


def place(path: PurePosixPath) -> PurePosixPath | None:
    """Where a member goes: an image by its split, a map below stuffthingmaps/, annotations; None if unused."""
    folder = path.parent.name
    if path.name in _ANNOTATIONS:
        return PurePosixPath("annotations", path.name)
    if folder in _SPLITS and path.suffix == ".jpg":
        return PurePosixPath(folder, path.name)
    if folder in _SPLITS and path.suffix == ".png":
        return PurePosixPath(MAPS, folder, path.name)
    return None


def main(argv: list[str] | None = None) -> int:
    """The command; 0 where all is done."""
    return unpack_tool(
        argv,
        __doc__,
        place,
        name="coco",
        title="COCO 2017",
        hint="the archives are listed at https://cocodataset.org/#download",
    )


if __name__ == "__main__":
    sys.exit(main())
