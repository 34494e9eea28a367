"""`compactmtl data`: look at a data set before training on it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.cli.parser import add_trust
from compactmtl.errors import OK, USAGE, DataError

if TYPE_CHECKING:
    from compactmtl.config.recipe import DataConfig
    from compactmtl.data.base import DataReport, Split

HELP = "check a data set and draw samples with their labels"
EXAMPLE = """
compactmtl data check scenes --out scenes.png
compactmtl data check utkface root=~/data size=[64,64]
compactmtl data check scenes size=[240,320] options.seed=7
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    from compactmtl.data.registry import DATASETS

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="count and decode all samples, describe the targets and draw some samples; exit with code 2 if there is a problem",
    )
    check.add_argument(
        "name",
        metavar="NAME",
        help=f"data set: {', '.join(DATASETS)}; a class of your own as package.module:Class; or a recipe, whose data "
        "section is checked",
    )
    check.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="keys of the data section of a recipe, such as root=/data size=[96,128], with data. before them or without",
    )
    check.add_argument(
        "--out",
        metavar="PICTURE.png",
        type=Path,
        help="file of the picture (default: data-NAME.png in the working folder)",
    )
    check.add_argument(
        "--split", metavar="SPLIT", default="train", help="split that the picture shows (default: train)"
    )
    check.add_argument(
        "--samples", metavar="N", type=int, default=6, help="number of samples in the picture (default: 6)"
    )
    add_trust(check)


def run(args: argparse.Namespace) -> int:
    """Print the report, write the picture; USAGE where the data set has problems."""
    from compactmtl.data.check import check_dataset

    if args.samples < 1:
        raise DataError(f"--samples {args.samples}: expected a positive number", "give 1 or more")
    out: Path = args.out or Path(f"data-{re.sub('[:/]', '-', args.name.removesuffix('.yaml'))}.png")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DataError(f"{out}: expected the name of a picture", "end the name in .png")
    config, tasks = _config(args.name, args.overrides)
    report = check_dataset(config, tasks)
    _print_report(config, report)
    unwritten: OSError | None = None
    if args.split in report.counts:
        try:
            _write_picture(config, args.split, args.samples, out)
        except OSError as error:
            # What the check found stands without its picture.
            print(
                f"note     no picture: {out} cannot be written ({error.strerror}); choose another file with --out"
            )
            unwritten = error
    elif not report.problems:
        raise DataError(
            f"{args.name} has no split {args.split!r}",
            f"the splits found are {', '.join(report.counts)}",
        )
    if unwritten is not None and args.out is not None and not report.problems:
        raise DataError(f"{out}: cannot be written ({unwritten.strerror})", "choose another file with --out")
    if report.problems:
        raise DataError(
            f"{args.name}: {len(report.problems)} problem{'s' * (len(report.problems) > 1)} in the data, listed above",
            "fix them and check again",
            USAGE,
        )
    return OK


def _config(name: str, overrides: list[str]) -> tuple[DataConfig, dict[str, str]]:
    """The data section, and a recipe's tasks with their targets."""
    from compactmtl.config.load import load_recipe
    from compactmtl.config.lookup import SUFFIXES
    from compactmtl.config.merge import apply_overrides
    from compactmtl.config.recipe import DataConfig
    from compactmtl.config.validate import validate
    from compactmtl.config.yaml import Node, Place
    from compactmtl.data.datasets import dataset_module

    overrides = [word.removeprefix("data.") for word in overrides]
    if name.endswith(SUFFIXES) or ("/" in name and ":" not in name):
        recipe = load_recipe(name, [f"data.{word}" for word in overrides])
        return recipe.data, {task: one.target or task for task, one in recipe.tasks.items()}
    module = dataset_module(name)
    height, width = module.DEFAULT_SIZE
    words = [f"name={name}", f"size=[{height},{width}]"]
    if module.DEFAULT_ROOT is not None:
        words.append(f"root={module.DEFAULT_ROOT}")
    node = apply_overrides(Node({}, Place(None)), [*words, *overrides])
    return validate(DataConfig, node, "the command line"), {}


def _sections(config: DataConfig) -> dict[str, DataConfig]:
    """The section, or that of each source by the key that it stands under."""
    from compactmtl.config.sources import of_source

    own = {f"sources.{source.called}.": of_source(config, source, deployed=True) for source in config.sources}
    return own or {"": config}


def _print_report(config: DataConfig, report: DataReport) -> None:
    from compactmtl.data.datasets import dataset_module, splits_of
    from compactmtl.data.labels import label_line

    sections = _sections(config)
    for name in dict.fromkeys(section.name for section in sections.values()):
        print(f"{name}: {dataset_module(name).DESCRIPTION}")
    for root in dict.fromkeys(section.root for section in sections.values()):
        if root is not None:
            print(f"root     {root}")
    how = {"stretch": "stretched to", "letterbox": "letterboxed to", "crop": "scaled and cut to"}[
        config.resize
    ]
    size = f"{how} {config.size[0]} x {config.size[1]} (height x width)"
    print(f"size     {size}" + ("" if config.inputs else f", channels: {config.channels}"))
    for name, one in config.inputs.items():
        what = f"picture, channels: {one.channels}" if one.is_picture else f"vector of {one.channels}"
        print(f"input    {name}: {what}")
    for split, count in report.counts.items():
        print(f"{split:<8} {count} samples")
    for missing in (split for split in splits_of(config) if split not in report.counts):
        print(f"{missing:<8} missing")
    if report.endings:
        print(f"images   {', '.join(f'{count} {ending}' for ending, count in report.endings.items())}")
    for split, known in report.known.items():
        print(f"labels   {label_line(split, report.counts[split], known)}")
    for line in report.pseudo_labels:
        print(f"teacher  {line}")
    for target, text in report.targets.items():
        print(f"target   {target}: {text}")
    for where, section in sections.items():
        for name, field in dataset_module(section.name).Options.model_fields.items():
            given = section.options.get(name, field.default)
            print(f"option   {where}options.{name}={given}: {field.description}")
    for note in report.notes:
        print(f"note     {note}")
    for problem in report.problems:
        print("problem  " + problem.replace("\n", "\n         "))


def _write_picture(config: DataConfig, split: Split, samples: int, out: Path) -> None:
    from PIL import Image

    from compactmtl.config.sources import as_deployed
    from compactmtl.data.check import sample_sheet
    from compactmtl.data.datasets import load_dataset

    dataset = load_dataset(as_deployed(config.model_copy(update={"cache": "none"})), split)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample_sheet(dataset, samples)).save(out)
    print(f"picture  {out}")
