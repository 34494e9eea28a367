"""From a picture file to the model's input, and from a map back to the picture's size, by `inputs` of bundle.json."""

import numpy as np
from PIL import Image, UnidentifiedImageError

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # Pillow's, of 8 bits or less
KINDS = {"gray": "L", "RGB": "RGB", "RGBA": "RGBA"}  # `colors` of the input to Pillow's modes


def read(path, want):
    """A picture file as 8-bit numbers (height, width, channels), upright, by the rules of `picture`."""
    suffix, turn = path.suffix.lower(), 1
    if suffix == ".npy":
        values = np.load(path, allow_pickle=False)
        values = values[..., None] if values.ndim == 2 else values
        if values.ndim == 3 and values.shape[-1] != want["channels"] == len(values):
            values = values.transpose(1, 2, 0)
    elif suffix in (".tif", ".tiff") and (want["colors"] == "bands" or needs_tifffile(path, want["values"])):
        values, turn = read_tiff(path, want["channels"])
    elif want["colors"] == "bands":
        raise ValueError(f"pictures of {want['channels']} channels are .tif or .npy")
    else:
        head = path.read_bytes()[:26]
        if want["values"] and head[1:4] == b"PNG" and head[24] == 16 and head[25] in (2, 4, 6):
            raise ValueError("Pillow keeps the upper 8 of its 16 bits, save it as .tif or .npy")
        values, turn = read_pillow(path, KINDS[want["colors"]], want["values"])
    if values.ndim != 3 or values.shape[-1] != want["channels"]:
        raise ValueError(f"it is of shape {values.shape}, the model takes {want['channels']} channels")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)  # a file may be of another machine
    if values.dtype == np.uint16 or (
        want["values"] and values.dtype.kind in "iuf" and values.dtype != np.uint8
    ):
        values = eight_bits(values, want["values"])
    if values.dtype != np.uint8:
        raise ValueError(
            f"its numbers, of type {values.dtype}, have no known range, save it as uint8 or uint16"
        )
    values = values.swapaxes(0, 1) if turn >= 5 else values  # EXIF's orientations
    values = values[::-1] if turn in (3, 4, 7, 8) else values
    return values[:, ::-1] if turn in (2, 3, 6, 7) else values


def needs_tifffile(path, limits):
    """Whether Pillow does not read such a TIFF, or would not give all bits of its colors, which `values` is of."""
    try:
        with Image.open(path) as image:
            bits = getattr(image, "tag_v2", {}).get(258, (8,))
            return limits is not None and len(bits) > 1 and max(bits) > 8
    except UnidentifiedImageError:
        return True


def read_pillow(path, mode, limits):
    """The numbers of a picture file, and how it still has to be turned."""
    with path.open("rb") as file, Image.open(file) as image:
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise ValueError("it holds several pictures, save one of them alone")
        image.load()
        turn = image.getexif().get(0x0112, 1)
        turn = turn if turn in range(1, 9) else 1
        if mode == "RGBA":
            if image.mode not in ("RGBA", "RGBX", "LA", "PA") and "transparency" not in image.info:
                raise ValueError("it has no fourth channel, save it as RGBA")
            return np.asarray(image if image.mode == "RGBX" else image.convert("RGBA")), turn
        deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        deep = deep or (limits and image.mode in ("I", "F"))
        if image.mode not in MODES and not deep:
            raise ValueError(f"its pixels, of mode {image.mode}, have no known range, save it as RGB")
        image.info.pop("transparency", None)
        if deep:
            image = Image.fromarray(eight_bits(np.asarray(image), limits))
        gray = image.mode in ("1", "L", "LA")
        values = np.asarray((image if gray else image.convert("RGB")).convert(mode))
    return values.reshape(*values.shape[:2], -1), turn


def read_tiff(path, channels):
    """The numbers of a TIFF of bands, which may lie one behind another, and how it has to be turned."""
    import tifffile  # pip install tifffile: for such files alone

    with tifffile.TiffFile(path) as file:
        if len(file.series) > 1:
            raise ValueError("it holds several pictures, save one of them alone")
        axes, values = file.series[0].axes, file.series[0].asarray()
        tag = getattr(file.series[0].pages[0], "tags", {}).get("Orientation")
    if values.ndim == 3 and (axes[0] == "S" or (axes[0] in "CIQ" and len(values) == channels)):
        values = values.transpose(1, 2, 0)
    turn = 1 if tag is None else int(tag.value)
    return (values[..., None] if values.ndim == 2 else values), turn if turn in range(1, 9) else 1


def eight_bits(values, limits):
    """Numbers of more than 8 bits as 8, by `values` of the input: null is 0 to 65535."""
    if limits is None:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = limits
    share = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / (high - low)
    return np.floor(share.clip(0, 1) * 255 + 0.5).astype(np.uint8)


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
