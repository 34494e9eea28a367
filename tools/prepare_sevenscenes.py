"""Convert a 7-Scenes scene to RGB-D folders with normals derived from its depth.

python tools/prepare_sevenscenes.py redkitchen ~/data/sevenscenes --every 4

Reads seq-*/frame-*.{color,depth}.png (or .jpg colors) with TrainSplit.txt and TestSplit.txt, and writes
{train,val,test}/{rgb,depth,normal} and camera.json. The last tenth of each training sequence becomes val: neighboring
frames of a video are nearly the same picture, so a random share would flatter. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

from compactmtl.data.convert import Job, convert, copy_file, run_tool, save_png
from compactmtl.data.formats import coded_normals, metres, read_depth_units
from compactmtl.data.images import read_image
from compactmtl.data.normals import Intrinsics, normals_from_depth
from compactmtl.errors import DataError

FOCAL = 585.0  # of the Kinect at 640x480, as the authors give it for all scenes
SIZE = (480, 640)
VAL_SHARE = 0.1


def intrinsics(size: tuple[int, int]) -> Intrinsics:
    """The Kinect's camera for pictures of this size; the authors give its center as (320, 240)."""
    return Intrinsics(SIZE, (FOCAL, FOCAL), (SIZE[1] / 2, SIZE[0] / 2)).resized(size)


def sequences(scene: Path) -> dict[str, list[Path]]:
    """The folders of the training and the test sequences. Raises DataError where the lists or folders are missing."""
    found: dict[str, list[Path]] = {}
    for split, name in (("train", "TrainSplit.txt"), ("test", "TestSplit.txt")):
        path = scene / name
        if not path.is_file():
            raise DataError(f"{path}: no such file", "unpack a whole scene of 7-Scenes there")
        numbers = re.findall(r"(\d+)", path.read_text(encoding="utf-8"))
        found[split] = [scene / f"seq-{int(number):02d}" for number in numbers]
    for folder in [*found["train"], *found["test"]]:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder", f"unpack {folder.name}.zip there")
    return found


def frames(scene: Path, every: int) -> list[tuple[str, str, Path, Path]]:
    """(split, name, color, depth) of every Nth frame."""
    listed: list[tuple[str, str, Path, Path]] = []
    for split, folders in sequences(scene).items():
        for folder in folders:
            depths = sorted(folder.glob("frame-*.depth.png"))[::every]
            first_val = len(depths) - round(len(depths) * VAL_SHARE) if len(depths) > 1 else len(depths)
            first_val = min(first_val, len(depths) - 1) if len(depths) > 1 else first_val
            for number, depth in enumerate(depths):
                stem = depth.name.removesuffix(".depth.png")
                colors = [folder / f"{stem}.color{end}" for end in (".png", ".jpg")]
                color = next((path for path in colors if path.is_file()), None)
                if color is None:
                    raise DataError(f"{colors[0]}: no such file", "unpack the sequence again")
                part = "val" if split == "train" and number >= first_val else split
                listed.append((part, f"{folder.name}-{stem}", color, depth))
    if not listed:
        raise DataError(f"{scene}: no frame-*.depth.png in its sequences", "unpack the sequences there")
    return listed


def prepare(scene: Path, out: Path, every: int) -> int:
    """Convert a scene; gives the exit code: 2 where a frame could not be."""
    listed = frames(scene, every)
    size = read_image(listed[0][2]).shape[1:]

    def job(split: str, name: str, color: Path, depth: Path) -> Job:
        rgb = out / split / "rgb" / f"{name}{color.suffix}"
        stored, normal = (out / split / part / f"{name}.png" for part in ("depth", "normal"))

        def make() -> None:
            read_image(color)
            units = read_depth_units(depth)
            shape = (units.shape[0], units.shape[1])
            normals = normals_from_depth(metres(units, shape, 1000.0)[0], intrinsics(shape))
            copy_file(color, rgb)
            save_png(stored, np.where(units >= 65535, 0, units).astype(np.uint16))
            save_png(normal, coded_normals(normals).transpose(1, 2, 0))

        return Job((rgb, stored, normal), make)

    outcome = convert([job(*frame) for frame in listed], "converting")
    camera = intrinsics((size[0], size[1]))
    matrix = [[camera.focal[0], 0, camera.center[0]], [0, camera.focal[1], camera.center[1]], [0, 0, 1]]
    (out / "camera.json").write_text(
        json.dumps({f"intrinsics_{size[1]}x{size[0]}": matrix}), encoding="utf-8"
    )
    print(f"{outcome.made} frames converted, {outcome.skipped} were there, into {out}")
    for fault in outcome.faults:
        print(f"problem  {fault}", file=sys.stderr)
    return 2 if outcome.faults else 0


def main(argv: list[str] | None = None) -> int:
    """The command; 0 where all is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scene", type=Path, help="folder of one scene, with seq-01/ and TrainSplit.txt")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="take every Nth frame (default: 1, all)"
    )
    args = parser.parse_args(argv)
    if args.every < 1:
        parser.error("--every needs at least 1")
    return run_tool(lambda: prepare(args.scene, args.out, args.every))


if __name__ == "__main__":
    sys.exit(main())
