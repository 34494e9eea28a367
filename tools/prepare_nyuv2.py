"""Make NYUv2's labelled file into PNG files that load quickly, with normals derived once; or unpack MTAN's archive.

python tools/prepare_nyuv2.py ~/Downloads/nyu_depth_v2_labeled.mat --out data/nyuv2
python tools/prepare_nyuv2.py ~/Downloads/nyuv2.zip --out data/nyuv2

Writes {train,val}/{image,label,depth,normal}/0001.png, val being the official test set: NYU40 labels from 0 with 255
unlabeled, depth in 1/5000 m (up to 13.1 m, beyond which it is unknown), normals as n = value / 127.5 - 1, off by up to
0.4 degrees; and scenes.json. Interrupted, run it again. The .npy files of MTAN are unpacked as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.archives import extract
from compactmtl.data.convert import Job, convert, run_tool, save_png
from compactmtl.data.formats import coded_normals
from compactmtl.data.maps import relabel
from compactmtl.data.nyuv2_labels import label_table
from compactmtl.data.nyuv2_layouts import DEPTH_UNITS, PARTS, SCENES, derived_normals
from compactmtl.data.nyuv2_mat import MatFile
from compactmtl.errors import OK, USAGE, DataError, command


def place(path: PurePosixPath) -> PurePosixPath | None:
    """Where a member of MTAN's archive goes: <split>/<part>/0.npy; None if it is none of them."""
    parts = path.parts
    known = path.suffix == ".npy" and len(parts) >= 3 and parts[-3] in ("train", "val") and parts[-2] in PARTS
    return PurePosixPath(*parts[-3:]) if known else None


def prepare_mat(source: Path, out: Path) -> int:
    """The frames of the .mat file as PNG files; those that are there are kept. Gives the number of damaged frames.

    Raises DataError for a file that is not NYUv2's.
    """
    file = MatFile(source)
    train, test = file.split()
    table = label_table(40)

    def write(number: int, paths: Mapping[str, Path]) -> None:
        depth = file.depth(number)
        save_png(paths["image"], file.image(number).transpose(1, 2, 0))
        save_png(paths["label"], relabel(file.labels(number), table, f"{source}: frame {number + 1}"))
        save_png(paths["depth"], coded_depth(depth))
        normals = derived_normals(depth[None], file.size)
        save_png(paths["normal"], coded_normals(normals).transpose(1, 2, 0))

    jobs = []
    for split, numbers in (("train", train), ("val", test)):
        for number in numbers:
            paths = {part: out / split / part / f"{number + 1:04d}.png" for part in PARTS}
            jobs.append(Job(tuple(paths.values()), partial(write, number, paths)))
    outcome = convert(jobs, "NYUv2")
    scenes = file.scenes()
    if all(scenes):
        names = {f"{number + 1:04d}": scenes[number] for number in sorted((*train, *test))}
        (out / SCENES).write_text(json.dumps(names, indent=0) + "\n", "utf-8")
    print(f"{outcome.made} frames written, {outcome.skipped} were there")
    for fault in outcome.faults:
        print(f"damaged: {fault}", file=sys.stderr)
    return len(outcome.faults)


def coded_depth(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Metres in the file's units; 0 where unknown or too far for 16 bits, whose last value others use for unknown."""
    units = np.rint(depth * DEPTH_UNITS)
    return np.where(units < 65535, units, 0).astype(np.uint16)


def prepare(source: Path, out: Path) -> int:
    """Convert a .mat file, or unpack an archive of MTAN's arrays; gives the exit code."""
    damaged = 0
    if source.suffix == ".mat":
        if not source.is_file():
            raise DataError(f"{source}: no such file", "check the path")
        damaged = prepare_mat(source, out)
    else:
        done = extract(source, out, place)
        if not done.written and not done.present:
            raise DataError(
                f"{source}: holds no {{train,val}}/{{image,label,depth,normal}}/*.npy",
                "give nyu_depth_v2_labeled.mat, or the archive that https://github.com/lorenmt/mtan links to",
            )
        print(f"{done.written} files written, {done.present} were there")
    print(f"look at them: {command('data', 'check', 'nyuv2', f'root={out}')}")
    return USAGE if damaged else OK


def main(argv: list[str] | None = None) -> int:
    """The command; 0 where all is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="nyu_depth_v2_labeled.mat, or MTAN's archive")
    parser.add_argument("--out", type=Path, default=Path("data/nyuv2"), help="default: %(default)s")
    args = parser.parse_args(argv)
    return run_tool(lambda: prepare(args.source, args.out))


if __name__ == "__main__":
    sys.exit(main())
