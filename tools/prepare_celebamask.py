"""Merge CelebAMask-HQ's masks of parts into one label map a face, which loads many times as fast.

python tools/prepare_celebamask.py ~/data/CelebAMask-HQ

Writes CelebAMaskHQ-mask/<number>.png (19 classes), as the authors' g_mask.py does; the loader takes these where they
are. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from compactmtl.data.celebamask import MERGED, find_parts, folder_of, merge_parts
from compactmtl.data.convert import Job, convert, run_tool, save_png
from compactmtl.errors import DataError


def prepare(root: Path) -> int:
    """Merge every face's parts; gives the exit code: 2 where a face could not be merged."""
    folder = folder_of(str(root))
    parts, unparsed = find_parts(folder)
    if not parts:
        raise DataError(f"{folder}: no masks of parts", "unpack the whole of CelebAMask-HQ.zip there")

    def job(number: int) -> Job:
        path = folder / MERGED / f"{number}.png"
        return Job((path,), lambda: save_png(path, merge_parts(parts[number])))

    outcome = convert([job(number) for number in parts], "merging")
    print(f"{outcome.made} faces merged, {outcome.skipped} were there, into {folder / MERGED}")
    if unparsed:
        print(f"{len(unparsed)} files are of no known part, such as {unparsed[0]}")
    for fault in outcome.faults:
        print(f"problem  {fault}", file=sys.stderr)
    return 2 if outcome.faults else 0


def main(argv: list[str] | None = None) -> int:
    """The command; 0 where all is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder with CelebA-HQ-img/ and CelebAMask-HQ-mask-anno/")
    args = parser.parse_args(argv)
    return run_tool(lambda: prepare(args.root))


if __name__ == "__main__":
    sys.exit(main())
