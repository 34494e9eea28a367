"""Run this bundle: `python infer.py ARRAYS... [--out FOLDER]`, or `--check`. bundle.json says what goes in and comes out.

ARRAYS are .npz archives that hold the inputs by name, or input=file.npy, one for each input.
"""

import argparse
import json
import sys
from pathlib import Path

try:
    import numpy as np

    from compactmtl.backends.onnxruntime.in_bundle import open_model
    from compactmtl.export.in_bundle.shared import arrays_of, check, decode, file_name, opened
except ImportError as error:
    sys.exit(f"error: {error}: pip install numpy and the runtime")

HERE = Path(__file__).resolve().parent


def load(place, inputs):
    """The arrays of an archive by name, or the one array of `input=file` or `file`; a path may hold = itself."""
    named = {
        one["name"]: Path(place[len(one["name"]) + 1 :])
        for one in inputs
        if place.startswith(one["name"] + "=")
    }
    name, file = next(((name, file) for name, file in named.items() if file.is_file()), ("", Path(place)))
    with file.open("rb") as stream:
        if stream.read(2) not in (b"\x93N", b"PK"):
            raise ValueError(f"{file} is no .npy or .npz file: this bundle takes arrays, not pictures")
    try:
        found = arrays_of(file)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} can't be read: {error}") from error
    return {name: found} if isinstance(found, np.ndarray) else found


def read(places, inputs):
    """The inputs by name, from archives and single arrays; each of the type and shape that the model takes."""
    names = {"", *(one["name"] for one in inputs)}
    found = [pair for place in places for pair in load(place, inputs).items() if pair[0] in names]
    arrays, given = dict(found), [name for name, _ in found]
    if twice := sorted({name or "an array without a name" for name in given if given.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is given twice")
    if len(inputs) == 1 and set(arrays) == {""}:  # one input needs no name
        arrays = {inputs[0]["name"]: arrays[""]}
    for one in inputs:
        if one["name"] not in arrays:
            there = ", ".join(name or "an array without a name" for name in arrays)
            raise ValueError(f"the model takes {one['name']}, and there is only {there}")
        shape, want = arrays[one["name"]].shape, one["shape"]
        fits = [isinstance(side, str) or side == size for side, size in zip(want, shape)]
        if len(shape) != len(want) or not all(fits):
            raise ValueError(f"{one['name']} takes the shape {want}, found {list(shape)}")
        if arrays[one["name"]].dtype != one["dtype"]:
            raise ValueError(f"{one['name']} takes {one['dtype']}, found {arrays[one['name']].dtype}")
    return {one["name"]: np.ascontiguousarray(arrays[one["name"]]) for one in inputs}


def value_of(x, rule):
    """The values of a whole output; instances as their numbers and classes, one above the other."""
    if rule["op"] == "none":
        return x
    return np.stack([np.asarray(decode(one, rule)) for one in x])


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
    run = opened(HERE, info, open_model)
    golden = HERE / info["golden"]["arrays"]
    try:
        arrays = read([str(golden)] if args.check else args.arrays, info["inputs"])
    except Exception as error:  # damaged files raise many kinds
        sys.exit(f"error: {error}")
    outputs = run(arrays)
    if args.check:
        return check(HERE, info, outputs)
    args.out.mkdir(parents=True, exist_ok=True)
    for one in info["outputs"]:
        value = value_of(outputs[one["name"]], one["decode"])
        span = f"{value.min():.6g} to {value.max():.6g}" if value.size else "empty"
        print(f"{one['name']}: {list(value.shape)} {value.dtype}, {span} {one['unit']}".rstrip())
        np.save(args.out / f"{file_name(one['name'])}.npy", value)


if __name__ == "__main__":
    sys.exit(main())
