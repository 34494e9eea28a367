"""What all programs of a bundle do alike; each gets it as a part of its infer.py."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from compactmtl.export.in_bundle.panoptic import panoptic


def opened(folder, info, open_model):
    """The model as a function of arrays by name, of files that bundle.json tells of; else the program ends."""
    for name, expected in info["files"].items():
        if not (folder / name).is_file():
            sys.exit(f"error: {folder / name} is missing")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            sys.exit(f"error: {folder / name} is not the file that bundle.json tells of: its hash differs")
    try:
        return open_model(folder / info["model"], info["target"])
    except Exception as error:  # each runtime has its own
        sys.exit(f"error: {folder / info['model']} cannot be opened here: {error}")


def arrays_of(path):
    """The array of a .npy file, or those of a .npz file by name. Raises OSError, EOFError or ValueError for a damaged one."""
    try:
        with Path(path).open("rb") as file:  # numpy leaves a damaged archive open
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (OSError, EOFError, ValueError):
        raise
    except MemoryError as error:
        if Path(path).stat().st_size >= 1 << 31:  # an array is no larger than its file
            raise
        raise ValueError(f"its header claims more than the file holds: {error}") from error
    except Exception as error:  # parsers of headers and archives raise many kinds
        raise ValueError(f"{type(error).__name__}: {error}") from error


def decode(x, rule):
    """The value that one sample's output stands for, by `decode` of the output; floats as float32."""
    x = x.astype(np.float32) if x.dtype.kind == "f" else x
    return {
        "none": lambda: x,
        "first": lambda: x[0],
        "argmax": lambda: x.argmax(0),
        "threshold": lambda: (x > rule["threshold"]).astype(np.float32),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "expectation": lambda: np.average(rule["centers"], weights=np.exp(x - x.max())),
        "unit_vector": lambda: x / np.maximum(np.sqrt((x * x).sum(0)), 1e-12),
        "panoptic": lambda: panoptic(x, rule["panoptic"]),
    }[rule["op"]]()


def check(folder, info, arrays):
    """Hold the golden inputs' arrays and outputs against what is stored; 1 where one is off, else 0.

    Of pictures every `step`-th row and column of the first sample is stored; of arrays, which are fed from the same file,
    every `step`-th number of each output.
    """
    golden, wrong = info["golden"], 0
    stored = np.load(folder / golden["arrays"], allow_pickle=False)
    for one in info["outputs"] if golden["picture"] is None else info["inputs"] + info["outputs"]:
        x, rule = arrays[one["name"]], golden["tensors"][one["name"]]
        if golden["picture"] is None:
            x = x.ravel()[:: rule["step"]]
        else:
            sides = [rule["step"] if side in ("height", "width") else 1 for side in one["axes"]]
            x = x[:1][tuple(slice(None, None, step) for step in sides)]
        wrong |= differs(one["name"], x, stored[one["name"]], rule["tolerance"])
    return wrong


def differs(name, x, there, tolerance):
    """Whether an array is further from the stored one than it may be; how far it is, is printed."""
    if x.shape != there.shape:
        print(f"{name}: {list(x.shape)}, {list(there.shape)} is right")
        return True
    off, greatest = np.abs(x.astype(np.float64) - there), max(np.abs(there).max(initial=0), 1e-9)
    share = (
        np.count_nonzero(off) / max(off.size, 1)
        if there.dtype.kind in "iu"
        else off.max(initial=0) / greatest
    )
    print(f"{name}: off by {share:.1e}, at most {tolerance:.1e} is right")
    return not share <= tolerance


def file_name(name: str) -> str:
    """An output's name as part of a file's: ONNX allows in it what a file system does not, such as /."""
    return "".join(one if one.isalnum() or one in "._-" else "_" for one in name)
