"""Unpack COCO 2017's archives into the folders that `compactmtl` reads.

python tools/prepare_coco.py ~/Downloads/train2017.zip ~/Downloads/val2017.zip \
    ~/Downloads/annotations_trainval2017.zip ~/Downloads/stuffthingmaps_trainval2017.zip --out data/coco

Only what is read is unpacked: the images, the instances' annotations and, where given, COCO-Stuff's maps. Interrupted,
run it again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path, PurePosixPath

from compactmtl.data.archives import extract
from compactmtl.data.coco import MAPS
from compactmtl.errors import CompactError, DataError

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


def prepare(archives: list[Path], out: Path) -> None:
    """Unpack each archive. Raises DataError for one that holds nothing of COCO."""
    for archive in archives:
        done = extract(archive, out, place)
        if not done.written and not done.present:
            raise DataError(
                f"{archive}: holds no file of COCO 2017 ({done.left_out} others)",
                "the archives are listed at https://cocodataset.org/#download",
            )
        print(f"{archive.name}: {done.written} files written, {done.present} were there")
    print(f"look at them: compactmtl data check coco root={out}")


def main(argv: list[str] | None = None) -> int:
    """The command; 0 where all is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", type=Path, nargs="+", metavar="ARCHIVE")
    parser.add_argument("--out", type=Path, default=Path("data/coco"), help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        prepare(args.archives, args.out)
    except CompactError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
