r"""Unpack Cityscapes' archives into the folders that `compactmtl` reads.

python tools/prepare_cityscapes.py ~/Downloads/leftImg8bit_trainvaltest.zip ~/Downloads/gtFine_trainvaltest.zip \
    ~/Downloads/disparity_trainvaltest.zip --out data/cityscapes

Only what is read is unpacked: images, label ids, disparity, calibration and parts of train and val. Interrupted, run it
again. MTAN's .npy archive is unpacked the same way.
"""

from __future__ import annotations

import sys
from pathlib import PurePosixPath

from compactmtl.data.archives import unpack_tool

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


def main(argv: list[str] | None = None) -> int:
    """The command; 0 where all is done."""
    return unpack_tool(
        argv,
        __doc__,
        place,
        name="cityscapes",
        title="Cityscapes",
        hint="the archives are listed at https://www.cityscapes-dataset.com/downloads",
    )


if __name__ == "__main__":
    sys.exit(main())
