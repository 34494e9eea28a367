"""From the files of a sample to the model's inputs, by `inputs` of bundle.json: of a model of several inputs."""

from pathlib import Path

import numpy as np

from compactmtl.export.in_bundle.picture import prepare
from compactmtl.export.in_bundle.pixels import read
from compactmtl.export.in_bundle.shared import arrays_of


def samples(given, inputs):
    """The files of each sample by input, from words INPUT=FILE. Raises ValueError for words that name no whole samples."""
    files = {one["name"]: [] for one in inputs}
    for word in given:
        name, equals, file = word.partition("=")
        if not equals or name not in files:
            raise ValueError(f"{word}: the model takes {', '.join(files)}")
        files[name].append(file)
    if len({len(one) for one in files.values()}) != 1:
        counts = ", ".join(f"{len(one)} of {name}" for name, one in files.items())
        raise ValueError(f"each sample needs one file of each input, found {counts}")
    return [dict(zip(files, one)) for one in zip(*files.values())]


def numbers(file, want):
    """A vector as the model's input: normalized unless the model does that. Raises ValueError naming what is wrong."""
    name, count = want["name"], want["shape"][1]
    try:
        if file.lower().endswith(".npy"):
            values = arrays_of(file)
        else:
            values = np.array([float(number) for number in file.split(",")])
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file}: not the numbers of input {name!r} ({error})") from error
    if isinstance(values, dict) or values.dtype.kind not in "fiu" or values.shape != (count,):
        found = "an archive" if isinstance(values, dict) else f"{values.dtype} of shape {values.shape}"
        raise ValueError(f"{file}: input {name!r} has {count} numbers, found {found}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{file}: input {name!r} holds a value that is not finite")
    if rule := want["normalize"]:
        values = (values * np.float32(rule["scale"]) - np.float32(rule["mean"])) / np.float32(rule["std"])
    batch = want["shape"][0] if isinstance(want["shape"][0], int) else 1
    return np.ascontiguousarray(np.stack([values] * batch), want["dtype"])


def load(sample, inputs):
    """The inputs of one sample as the model takes them; height and width of its first picture, and how that was resized.

    Raises ValueError naming a file that the model cannot take.
    """
    fed, first, of = {}, None, ""
    for want in inputs:
        file = sample[want["name"]]
        if want["resize"] is None:
            fed[want["name"]] = numbers(file, want)
            continue
        image = read(Path(file), want)
        (h, w), of = image.shape[:2], of or Path(file)
        first = first or ((h, w), want["resize"])
        height, width = first[0]
        if (h, w) != (height, width) and abs(h * width - w * height) > max(height, width):
            sizes = f"{w}x{h} pixels (width x height), its image {of} is {width}x{height}"
            raise ValueError(f"{Path(file)}: {sizes}")
        fed[want["name"]] = prepare(image, want)
    return fed, first
