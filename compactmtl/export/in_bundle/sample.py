"""From the files of a sample to the model's inputs, by `inputs` of bundle.json: of a model of several inputs."""

from pathlib import Path

import numpy as np

from compactmtl.export.in_bundle.picture import prepare, read


def samples(given, inputs):
    """The files of each sample by input, from words INPUT=FILE."""
    pairs = [word.partition("=")[::2] for word in given]
    by_name = {one["name"]: [file for name, file in pairs if name == one["name"]] for one in inputs}
    if strangers := [f"{name}={file}" for name, file in pairs if name not in by_name]:
        raise ValueError(f"{strangers[0]}: the model takes {', '.join(by_name)}")
    if len({len(files) for files in by_name.values()}) != 1:
        counts = ", ".join(f"{len(files)} of {name}" for name, files in by_name.items())
        raise ValueError(f"each sample needs one file of each input, found {counts}")
    return [dict(zip(by_name, files)) for files in zip(*by_name.values())]  # noqa: B905


def numbers(file, want):
    """A vector as the model's input: normalized unless the model does that."""
    values = np.load(file, allow_pickle=False) if file.endswith(".npy") else np.array(file.split(","), float)
    if values.shape != tuple(want["shape"][1:]) or not np.isfinite(values).all():
        raise ValueError(f"{file}: {want['name']} takes {want['shape'][1:]} finite numbers")
    values = values.astype(np.float32)
    if rule := want["normalize"]:
        values = (values * np.float32(rule["scale"]) - np.float32(rule["mean"])) / np.float32(rule["std"])
    batch = want["shape"][0] if isinstance(want["shape"][0], int) else 1
    return np.ascontiguousarray(np.stack([values] * batch), want["dtype"])


def load(sample, inputs):
    """The inputs of one sample as the model takes them; height and width of its first picture, and how that was resized."""
    fed, first = {}, None
    for want in inputs:
        file = sample[want["name"]]
        if want["resize"] is None:
            fed[want["name"]] = numbers(file, want)
            continue
        image = read(Path(file), want)
        first = first or (image.shape[:2], want["resize"])
        (h, w), (height, width) = image.shape[:2], first[0]
        if (h, w) != (height, width) and abs(h * width - w * height) > max(height, width):
            raise ValueError(f"{file}: of {w}x{h} pixels, the sample's first picture has {width}x{height}")
        fed[want["name"]] = prepare(image, want)
    return fed, first
