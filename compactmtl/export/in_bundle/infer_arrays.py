"""Run this bundle: `python infer.py ARRAYS... [--out FOLDER]`, or `--check`. bundle.json says what goes in and comes out.

ARRAYS are .npz archives that hold the inputs by name, or input=file.npy, one for each input.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

try:
    import numpy as np

    from compactmtl.backends.onnxruntime.in_bundle import open_model
    from compactmtl.export.in_bundle.panoptic import panoptic
except ImportError as error:
    sys.exit(f"error: {error}: pip install numpy and the runtime")

HERE = Path(__file__).resolve().parent


def load(place):
    """The arrays of an archive by name, or the one array of `name=file` or `file`."""
    name, _, file = place.rpartition("=")
    if Path(file).read_bytes()[:2] not in (b"\x93N", b"PK"):
        raise ValueError(f"{file} is no .npy or .npz file: this bundle takes arrays, not pictures")
    found = np.load(file, allow_pickle=False)
    return {name: found} if isinstance(found, np.ndarray) else dict(found)


def read(places, inputs):
    """The inputs by name, from archives and single arrays; each of the type and shape that the model takes."""
    arrays = {name: array for place in places for name, array in load(place).items()}
    if len(inputs) == 1 and set(arrays) == {""}:  # one input needs no name
        arrays = {inputs[0]["name"]: arrays[""]}
    for one in inputs:
        if one["name"] not in arrays:
            raise ValueError(f"the model takes {one['name']}, and there are only {', '.join(arrays)}")
        shape, want = arrays[one["name"]].shape, one["shape"]
        fits = [isinstance(side, str) or side == size for side, size in zip(want, shape, strict=False)]
        if len(shape) != len(want) or not all(fits):
            raise ValueError(f"{one['name']} takes the shape {want}, found {list(shape)}")
        if arrays[one["name"]].dtype != one["dtype"]:
            raise ValueError(f"{one['name']} takes {one['dtype']}, found {arrays[one['name']].dtype}")
    return {one["name"]: np.ascontiguousarray(arrays[one["name"]]) for one in inputs}


def decode(x, rule):
    """The value that one sample's output stands for, by `decode` of the output."""
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


def value_of(x, rule):
    """The values of a whole output; instances as their numbers and classes, one above the other."""
    if rule["op"] == "none":
        return x
    samples = x.astype(np.float32) if x.dtype.kind == "f" else x
    return np.stack([np.asarray(decode(one, rule)) for one in samples])


def check(info, stored, outputs):
    """Hold the outputs for the golden inputs against what is stored; 1 where one is off, else 0."""
    wrong = 0
    for one in info["outputs"]:
        rule, there = info["golden"]["tensors"][one["name"]], stored[one["name"]]
        x = outputs[one["name"]].ravel()[:: rule["step"]]
        off = np.abs(x.astype(np.float64) - there)
        share = (off > 0).mean() if there.dtype.kind in "iu" else off.max() / max(np.abs(there).max(), 1e-9)
        print(f"{one['name']}: off by {share:.1e}, at most {rule['tolerance']:.1e} is right")
        wrong |= not share <= rule["tolerance"]
    return wrong


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("arrays", nargs="*", help="FILE.npz, or INPUT=FILE.npy for each input")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for OUTPUT.npy; by default this one")
    parser.add_argument("--check", action="store_true", help="hold the golden arrays against what is stored")
    args = parser.parse_args()
    if args.check == bool(args.arrays):
        parser.error("give arrays, or --check")
    info = json.loads((HERE / "bundle.json").read_text("utf-8"))
    for name, expected in info["files"].items():
        if not (HERE / name).is_file():
            sys.exit(f"error: {HERE / name} is missing")
        if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != expected:
            sys.exit(f"error: {HERE / name} is not the file that bundle.json tells of: its hash differs")
    try:
        run = open_model(HERE / info["model"], info["target"])
    except Exception as error:  # each runtime has its own
        sys.exit(f"error: {HERE / info['model']} cannot be opened here: {error}")
    golden = HERE / info["golden"]["arrays"]
    try:
        arrays = read([str(golden)] if args.check else args.arrays, info["inputs"])
    except (OSError, ValueError, EOFError) as error:
        sys.exit(f"error: {error}")
    outputs = run(arrays)
    if args.check:
        return check(info, np.load(golden, allow_pickle=False), outputs)
    args.out.mkdir(parents=True, exist_ok=True)
    for one in info["outputs"]:
        value = value_of(outputs[one["name"]], one["decode"])
        span = f"{value.min():.6g} to {value.max():.6g}" if value.size else "empty"
        print(f"{one['name']}: {list(value.shape)} {value.dtype}, {span} {one['unit']}".rstrip())
        np.save(args.out / f"{one['name']}.npy", value)


if __name__ == "__main__":
    sys.exit(main())
