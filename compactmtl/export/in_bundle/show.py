"""Values in words and maps as pictures, for infer.py. What runs the model needs nothing of it."""

import numpy as np
from PIL import Image

BACKGROUND = (232, 232, 232)  # of a picture of instances
NO_CLASS = (24, 24, 27)
MOST = 6  # classes that are named, the likeliest or largest


def words(one, x, value):
    """A value in words: classes with their probabilities or, of a map, shares of it; numbers in their unit.

    `one` is the output in bundle.json, `x` what the model gave, `value` what it stands for.
    """
    classes, op = one["classes"], one["decode"]["op"]
    if op == "panoptic":
        kinds = [classes[value[1][value[0] == number][0]] for number in range(1, value[0].max() + 1)]
        counts = sorted(((kinds.count(kind), kind) for kind in dict.fromkeys(kinds)), key=lambda two: -two[0])
        return ", ".join(f"{count} {kind}" for count, kind in counts[:MOST]) or "nothing"
    index = op == "argmax" or one["values"] == "class index"
    if classes and one["map"] and index:
        return _largest(classes, np.bincount(value.ravel(), minlength=len(classes)) / value.size)
    if classes and op != "argmax" and index:
        return classes[int(value)]
    if classes and op == "threshold":
        share = x if one["values"] == "probabilities" else 1 / (1 + np.exp(-x))
        return ", ".join(f"{name} {share[i]:.0%}" for i, name in enumerate(classes) if value[i]) or "none"
    if classes and op == "argmax":
        powers = np.exp(x - x.max())
        return _largest(classes, x if one["values"] == "probabilities" else powers / powers.sum())
    if not value.size:
        return "empty"
    low, high = f"{value.min():.6g}", f"{value.max():.6g}"
    return f"{low} {one['unit']}".rstrip() if value.size == 1 else f"{low} to {high} {one['unit']}".rstrip()


def _largest(classes, share):
    best = [i for i in np.argsort(-share, kind="stable")[:MOST] if share[i] >= 0.005]
    return ", ".join(f"{classes[i]} {share[i]:.0%}" for i in best)


def save_map(one, value, path):
    """Write a map of the picture's size as `path`.npy, as it is, and as `path`.png.

    Of what else has axes and no kind, the .npy alone; of values nothing.
    """
    raw = one["values"] == "raw" and value.ndim > 0
    if not one["map"] and not raw:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(f"{path}.npy", value)
    if one["map"]:
        picture(one, value).save(f"{path}.png")


def picture(one, value):
    """A map as a picture of its own size.

    Classes: a palette of their colors, whose indices are the classes. Instances: the same by the class of each, with white
    edges. Vectors: red to the right, green up, blue to the viewer. All else: black where least, white where greatest.
    """
    op = one["decode"]["op"]
    if op == "panoptic":
        numbers, kinds = value
        edge = np.zeros(numbers.shape, bool)
        edge[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
        edge[1:] |= numbers[1:] != numbers[:-1]
        colors = np.array([*map(_rgb, one["colors"]), BACKGROUND, (255, 255, 255)], np.uint8)
        there = np.where(edge, len(colors) - 1, kinds)
        return Image.fromarray(colors[np.where(numbers > 0, there, len(colors) - 2)])
    if value.dtype.kind in "iu" and len(one["classes"]) <= 256:
        image = Image.fromarray(value.astype(np.uint8))
        # What is no class, as where a picture was cut off, is near black.
        colors = [_rgb(color) for color in one["colors"]]
        colors += [NO_CLASS] * (256 - len(colors) if value.max() >= len(colors) else 0)
        image.putpalette([level for color in colors for level in color])
        return image
    if op == "unit_vector":
        shares = value.transpose(1, 2, 0) * (0.5, -0.5, -0.5) + 0.5
    else:
        value = value.reshape(-1, *value.shape[-2:])[0].astype(np.float64)
        shares = (value - value.min()) / max(np.ptp(value), 1e-12)
    return Image.fromarray((shares.clip(0, 1) * 255).round().astype(np.uint8))


def _rgb(color):
    """The three levels of a color such as #4e79a7."""
    return tuple(bytes.fromhex(color[1:]))
