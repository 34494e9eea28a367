"""What `export --kit` does: a device kit for each target."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from compactmtl.artifacts.told import tell

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from compactmtl.runs import Run


def add_kit(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a device kit."""
    parser.add_argument(
        "--kit",
        action="store_true",
        help="also write a device kit: a folder that measures the models on a machine that has only the runtime",
    )
    parser.add_argument(
        "--kit-out",
        metavar="PATH",
        help="where to write the kit, a folder or a file that ends in .zip (default: RUN/kits/TARGET)",
    )
    parser.add_argument(
        "--kit-images",
        metavar="N",
        type=int,
        help="pack the first N images of the val split into the kit, so that accuracy is measured there too",
    )


def kit_places(args: argparse.Namespace, run: Run, targets: Iterable[str]) -> dict[str, Path]:
    """Where each target's kit goes; empty where none is asked for. Raises ConfigError."""
    from pathlib import Path

    from compactmtl.errors import ConfigError
    from compactmtl.export.kit.write import default_place

    if args.kit_images is not None and args.kit_images < 1:
        raise ConfigError(f"--kit-images {args.kit_images} packs nothing", "give 1 or more, or leave it out")
    if not args.kit and args.kit_out is None:
        if args.kit_images is not None:
            raise ConfigError("--kit-images is of a device kit, and none is asked for", "add --kit")
        return {}
    names = list(targets)
    if args.kit_out is None:
        return {name: default_place(run, name) for name in names}
    if len(names) > 1:
        raise ConfigError(
            f"--kit-out names one place for the kits of {', '.join(names)}",
            "export them one by one, or leave --kit-out out",
        )
    return {names[0]: Path(args.kit_out)}


def write_one(
    args: argparse.Namespace, run: Run, name: str, baseline: Run | None, places: dict[str, Path]
) -> None:
    """Write the target's kit, where one is asked for, and say how to use it."""
    from compactmtl.errors import command
    from compactmtl.export.kit.on_device import RESULTS, SCRIPT
    from compactmtl.export.kit.write import write_kit

    if name not in places:
        return
    kit = write_kit(
        run,
        name,
        places[name],
        baseline,
        images=args.kit_images or 0,
        progress=tell,
    )
    packed = f"{kit.images} images of the val split" if kit.images else "no images to measure accuracy on"
    print(f"kit: {kit.path} ({kit.megabytes:.1f} MB, {packed})")
    if kit.images < (args.kit_images or 0):
        print(f"note: the val split has {kit.images} images; all are packed", file=sys.stderr)
    print(f"  on the device, with numpy and the runtime ({kit.install}): python {SCRIPT}")
    print(f"  then here: {command('collect', run.path, RESULTS)}\n")
