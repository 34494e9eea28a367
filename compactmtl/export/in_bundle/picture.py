"""From the numbers of a picture to the model's input, and from a map back to the picture's size, by `inputs` of bundle.json."""

import numpy as np
from PIL import Image


def place(size, want):
    """Where a picture of `size` = (height, width) lies on the model's: its scaled size, and its first row and column."""
    (h, w), (height, width), how = size, (want["height"], want["width"]), want["how"]
    rows, columns = height, width
    if how != "stretch" and (h * width <= w * height) == (how == "letterbox"):
        rows = max(1, (2 * h * width + w) // (2 * w))
    elif how != "stretch":
        columns = max(1, (2 * w * height + h) // (2 * h))
    limit = max if how == "crop" else min
    rows, columns = limit(rows, height), limit(columns, width)
    first = [free // 2 if free >= 0 else -(-free // 2) for free in (height - rows, width - columns)]
    return (rows, columns), first


def windows(size, want):
    """The part of the model's picture that shows the picture, and the part of the scaled picture that is shown."""
    scaled, first = place(size, want)
    there, shown = [], []
    for axis, side in enumerate((want["height"], want["width"])):
        low, high = max(first[axis], 0), min(first[axis] + scaled[axis], side)
        there.append(slice(low, high))
        shown.append(slice(low - first[axis], high - first[axis]))
    return there, shown


def prepare(pixels, want):
    """A picture as the model's input: brought to its size, normalized unless the model does that."""
    rule = want["resize"]
    scaled, _ = place(pixels.shape[:2], rule)
    there, shown = windows(pixels.shape[:2], rule)
    values = np.empty((rule["height"], rule["width"], pixels.shape[2]), np.uint8)
    values[:] = 0 if rule["fill"] is None else rule["fill"]
    for band in range(pixels.shape[2]):  # each on its own
        image = Image.fromarray(np.ascontiguousarray(pixels[..., band]))
        image = image.resize((scaled[1], scaled[0]), Image.Resampling.BILINEAR)
        values[(*there, band)] = np.asarray(image)[tuple(shown)]
    if rule := want["normalize"]:
        values = (values * np.float32(rule["scale"]) - np.float32(rule["mean"])) / np.float32(rule["std"])
    values = values.transpose(2, 0, 1) if want["layout"] == "NCHW" else values
    batch = want["shape"][0] if isinstance(want["shape"][0], int) else 1
    return np.ascontiguousarray(np.stack([values] * batch), want["dtype"])


def visible(value, size, want):
    """The part of a map that shows the picture: all of it but the padding."""
    there, _ = windows(size, want)
    return value[(..., *there)]


def back(value, size, want, unknown):
    """The same part at the picture's own size, each pixel the nearest one; `unknown` (null: not a number) where it was cut off."""
    scaled, _ = place(size, want)
    _, shown = windows(size, want)
    whole = np.full((*value.shape[:-2], *scaled), np.nan if unknown is None else unknown, value.dtype)
    whole[(..., *shown)] = value
    rows, columns = (((2 * np.arange(size[i]) + 1) * scaled[i]) // (2 * size[i]) for i in (0, 1))
    return whole[..., rows[:, None], columns]
