"""From a picture file to 8-bit numbers, by `picture`, `colors`, `channels` and `values` of an input in bundle.json."""

import numpy as np
from PIL import Image, UnidentifiedImageError

from compactmtl.export.in_bundle.shared import arrays_of

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # Pillow's, of 8 bits or less
KINDS = {"gray": "L", "RGB": "RGB", "RGBA": "RGBA"}  # `colors` of the input to Pillow's modes
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what such a file begins with


class Refused(ValueError):
    """A whole file that the model cannot take, and why."""


def read(path, want):
    """A picture file as numbers (height, width, channels), upright. Raises ValueError naming the file and the reason."""
    try:
        return decoded(path, want)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged files
        raise ValueError(f"{path}: {reason(error, path.suffix.lower() == '.npy')}") from error


def reason(error, array):
    """Why a file could not be read, in words; `array`: it is a .npy file."""
    if isinstance(error, (Refused, FileNotFoundError)):
        return str(error) if isinstance(error, Refused) else "no such file"
    if isinstance(error, IsADirectoryError) and not array:
        return "a folder, not an image"
    if isinstance(error, PermissionError) and not array:
        return f"cannot be read ({error.strerror})"
    if isinstance(error, Image.DecompressionBombError):
        return f"larger than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, more than is decoded"
    if isinstance(error, ImportError):
        return "Pillow does not read a TIFF of such pixels, and tifffile is not installed"
    said = "unknown format" if str(error).startswith("cannot identify") else str(error)
    return f"not a whole {'.npy array' if array else 'image'} ({said or type(error).__name__})"


def decoded(path, want):
    """The numbers of the file; raises what decoders raise, and Refused."""
    suffix, turn, channels, limits = path.suffix.lower(), 1, want["channels"], want["values"]
    if suffix == ".npy":
        values = arrays_of(path)
        if isinstance(values, dict):
            raise ValueError("it is an archive of several arrays")
        values = values[..., None] if values.ndim == 2 else values
        if values.ndim == 3 and values.shape[-1] != channels == len(values):
            values = values.transpose(1, 2, 0)
    elif suffix in (".tif", ".tiff") and needs_tifffile(path, want):
        values, turn = read_tiff(path, channels)
    elif want["colors"] == "bands":
        if not path.exists():
            raise FileNotFoundError
        raise Refused(f"no file of {channels} channels")
    else:
        with path.open("rb") as file:
            head = file.read(26)
        if limits and head[1:4] == b"PNG" and head[24:25] == b"\x10" and head[25] in (2, 4, 6):
            raise Refused(
                "holds colors of 16 bits, of which Pillow keeps the upper 8, so that no range can be heeded"
            )
        values, turn = read_pillow(path, KINDS[want["colors"]], limits)
    if values.ndim != 3 or values.shape[-1] != channels or 0 in values.shape:
        raise Refused(f"an image of shape {tuple(values.shape)}, and not of {channels} channels")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)  # a file may be of another machine
    if values.dtype == np.uint16 or (limits and values.dtype.kind in "iuf" and values.dtype != np.uint8):
        values = eight_bits(values, limits)
    if values.dtype != np.uint8:
        raise Refused(f"numbers of type {values.dtype}, of which no range of brightness is known")
    values = values.swapaxes(0, 1) if turn >= 5 else values  # EXIF's orientations
    values = values[::-1] if turn in (3, 4, 7, 8) else values
    return values[:, ::-1] if turn in (2, 3, 6, 7) else values


def needs_tifffile(path, want):
    """Whether Pillow does not read such a TIFF, or would not give all bits of its colors, which `values` is of."""
    with path.open("rb") as file:
        if file.read(4) not in TIFF:
            return False
    if want["colors"] == "bands":
        return True
    try:
        with Image.open(path) as image:
            bits = getattr(image, "tag_v2", {}).get(258, (8,))
            return want["values"] is not None and len(bits) > 1 and max(bits) > 8
    except UnidentifiedImageError:
        return True
    except Exception:  # such as one that is cut short: what is wrong is said when it is read
        return False


def read_pillow(path, mode, limits):
    """The numbers of a picture file, and how it still has to be turned."""
    with path.open("rb") as file, Image.open(file) as image:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise Refused(f"holds {frames} pictures ({image.format})")
        image.load()
        turn = image.getexif().get(0x0112, 1)
        turn = turn if turn in range(1, 9) else 1
        if mode == "RGBA":
            if image.mode not in ("RGBA", "RGBX", "LA", "PA") and "transparency" not in image.info:
                raise Refused(f"has no fourth channel (Pillow's mode {image.mode!r})")
            return np.asarray(image if image.mode == "RGBX" else image.convert("RGBA")), turn
        deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        deep = deep or (limits and image.mode in ("I", "F"))
        if image.mode not in MODES and not deep:
            what = f"pixels of Pillow's mode {image.mode!r} ({image.format})"
            raise Refused(f"{what}, of which no range of brightness is known")
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
        axes, values = file.series[0].axes, file.series[0].asarray()
        tag, count = getattr(file.series[0].pages[0], "tags", {}).get("Orientation"), len(file.series)
    if count > 1:
        raise Refused(f"holds {count} pictures of different sizes or types")
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
