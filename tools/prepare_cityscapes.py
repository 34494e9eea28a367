"""Unpack Cityscapes' archives into the folders that `compactmtl` reads.

python tools/prepare_cityscapes.py ~/Downloads/leftImg8bit_trainvaltest.zip ~/Downloads/gtFine_trainvaltest.zip \
    ~/Downloads/disparity_trainvaltest.zip --out data/cityscapes

Only what is read is unpacked: images, label ids, disparity, calibration and parts of train and val. Interrupted, run it
again. MTAN's .npy archive is unpacked the same way.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path, PurePosixPath

from compactmtl.data.archives import extract
from compactmtl.errors import CompactError, DataError

_ENDINGS = {
    "leftImg8bit": "_leftImg8bit.png",
    "gtFine": "_gtFine_labelIds.png",
    "disparity": "_disparity.png",
    "camera": "_camera.json",
    "gtFinePanopticParts": "_gtFinePanopticParts.tif",
}


def place(path: PurePosixPath) -> PurePosixPath | None:
    """Where a member goes: <folder>/<split>/<city>/<name> or, of MTAN's arrays, <split>/<part>/0.npy; None if unused."""
    parts = path.parts
    for folder, ending in _ENDINGS.items():
        if folder in parts and path.name.endswith(ending):
            inner = parts[parts.index(folder) :]
            return PurePosixPath(*inner) if len(inner) == 4 and inner[1] in ("train", "val") else None
    if path.suffix == ".npy" and len(parts) >= 3 and parts[-3] in ("train", "val"):
        return PurePosixPath(*parts[-3:])
    return None


def prepare(archives: list[Path], out: Path) -> None:
    """Unpack each archive. Raises DataError for one that holds nothing of Cityscapes."""
    for archive in archives:
        done = extract(archive, out, place)
        if not done.written and not done.present:
            raise DataError(
                f"{archive}: holds no file of Cityscapes ({done.left_out} others)",
                "the archives are listed at https://www.cityscapes-dataset.com/downloads",
            )
        print(f"{archive.name}: {done.written} files written, {done.present} were there")
    print(f"look at them: compactmtl data check cityscapes root={out}")


def main(argv: list[str] | None = None) -> int:
    """The command; 0 where all is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", type=Path, nargs="+", metavar="ARCHIVE")
    parser.add_argument("--out", type=Path, default=Path("data/cityscapes"), help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        prepare(args.archives, args.out)
    except CompactError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
