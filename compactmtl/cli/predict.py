"""`compactmtl predict`: pictures and values for a user's own images from a run or a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactmtl.artifacts.layout import PREDICTIONS
from compactmtl.cli.parser import add_device, add_trust
from compactmtl.errors import ConfigError

if TYPE_CHECKING:
    from compactmtl.export.predict import Photo, Prediction
    from compactmtl.tasks import Task

HELP = "predict on your own images with a run or a bundle"
EXAMPLE = """\
compactmtl predict runs/utkface-compact face.jpg
compactmtl predict runs/scenes-compact/export/onnxruntime-cpu photos/*.jpg --out pictures --maps"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "source", metavar="RUN_OR_BUNDLE", help="a run folder, or a bundle such as RUN/export/TARGET"
    )
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files; of a model of several inputs NAME=FILE for each, sample after sample (a vector's numbers may stand "
        "for its file: camera=525,525,319.5)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help=f"also write one picture per image and {PREDICTIONS} to this folder",
    )
    parser.add_argument(
        "--maps",
        action="store_true",
        help="with --out: also write each map at the image's own size, as .npy (numbers) and .png (colors)",
    )
    parser.add_argument(
        "--lean-runtime",
        metavar="FILE",
        type=Path,
        help="TensorRT's lean runtime for an engine of an earlier version; needs --trust",
    )
    add_device(parser, "of a run: run the model")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is predicted; with --out write one picture an image, and predictions.json with every single value."""
    import json
    import sys

    from compactmtl.artifacts.files import write_text
    from compactmtl.config.paths import HERE
    from compactmtl.export import Predictor
    from compactmtl.export.sheet import sheet

    if args.maps and args.out is None:
        raise ConfigError("--maps needs a folder to write to", "give --out DIR too")
    images = [word for word in args.images if not word.startswith(tuple(f"{key}=" for key in HERE))]
    if len(images) < len(args.images):
        ignored = " ".join(word for word in args.images if word not in images)
        print(f"note: {ignored} has no effect: predict reads no data set", file=sys.stderr)
    if not images:
        raise ConfigError("no image is named", "name image files after the run or bundle")
    values: dict[str, Any] = {}
    with Predictor.open(args.source, lean_runtime=args.lean_runtime, device=args.device) as predictor:
        if predictor.doubt:
            print(f"warning: {args.source} cannot be trusted: {predictor.doubt}", file=sys.stderr)
        samples = samples_of(images, list(predictor.inputs))
        paths = [Path(one if isinstance(one, str) else one[predictor.first]) for one in samples]
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
        for path, name, sample in zip(paths, picture_names(paths), samples, strict=True):
            photo = predictor.photo(Path(sample) if isinstance(sample, str) else sample)
            predictions = predictor.predict(photo)
            if args.out is not None:
                sheet(photo.visible, predictions, predictor.tasks).save(args.out / name)
            if args.maps:
                write_maps(photo, predictions, predictor.tasks, args.out / Path(name).stem)
            values[str(path)] = {"picture": name, "tasks": record(predictions, predictor.tasks)}
            print(f"{path}: {describe(predictions, predictor.tasks)}", flush=True)
    if args.out is None:
        if any(task.dense for task in predictor.tasks.values()):
            print("give --out DIR to write maps as pictures", file=sys.stderr)
        return 0
    write_text(args.out / PREDICTIONS, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    print(f"pictures and {PREDICTIONS}: {args.out}")
    return 0


def samples_of(words: list[str], inputs: list[str]) -> Sequence[str | dict[str, str]]:
    """Image files; or where the model has `inputs`, the file of each by name for every sample.

    The nth file of a name is of the nth sample. Raises ConfigError for a name that the model does not take, and where a
    sample lacks an input.
    """
    if not inputs:
        return words
    files: dict[str, list[str]] = {name: [] for name in inputs}
    for word in words:
        name, equals, file = word.partition("=")
        if not equals or name not in files:
            raise ConfigError(
                f"{word}: the model takes {', '.join(inputs)}",
                f"name each input: {' '.join(f'{one}=FILE' for one in inputs)}",
            )
        files[name].append(file)
    if len({len(one) for one in files.values()}) != 1:
        counts = ", ".join(f"{len(one)} of {name}" for name, one in files.items())
        raise ConfigError(
            f"each sample needs one file of each input, found {counts}", "name the missing ones"
        )
    return [dict(zip(files, sample, strict=True)) for sample in zip(*files.values(), strict=True)]


def write_maps(photo: Photo, predictions: list[Prediction], tasks: dict[str, Task], path: Path) -> None:
    """Each map at the image's own size: its numbers as `path`.TASK.npy, its picture as `path`.TASK.png."""
    import numpy as np
    from PIL import Image

    for one in predictions:
        if tasks[one.task].dense:
            value = one.on(photo)
            np.save(f"{path}.{one.task}.npy", value)
            Image.fromarray(tasks[one.task].picture(value)).save(f"{path}.{one.task}.png")


def picture_names(paths: list[Path]) -> list[str]:
    """A file name for each image's picture: its own, numbered where two would be the same."""
    names: list[str] = []
    for path in paths:
        name, number = f"{path.stem}.png", 2
        while name in names:
            name, number = f"{path.stem}-{number}.png", number + 1
        names.append(name)
    return names


def describe(predictions: list[Prediction], tasks: dict[str, Task]) -> str:
    """The single values in words; a map in a few figures."""
    from compactmtl.export.sheet import line, map_lines

    words = []
    for one in predictions:
        task = tasks[one.task]
        told = ", ".join(map_lines(one, task)) if task.dense else line(one)
        words.append(f"{one.task} {told or 'as a picture only'}")
    return "; ".join(words)


def record(predictions: list[Prediction], tasks: dict[str, Task]) -> dict[str, Any]:
    """What predictions.json keeps: classes with their probabilities, a scalar with its unit, a map in figures."""
    return {one.task: tasks[one.task].summary(one.value, one.probabilities) for one in predictions}
