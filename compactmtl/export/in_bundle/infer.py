"""Run this bundle: `python infer.py IMAGE... [--out FOLDER]`, or `--check`. bundle.json says what is done here."""

import argparse
import json
import sys
from pathlib import Path

try:
    from compactmtl.backends.onnxruntime.in_bundle import open_model
    from compactmtl.export.in_bundle.picture import back, prepare, visible
    from compactmtl.export.in_bundle.pixels import read
    from compactmtl.export.in_bundle.shared import check, decode, file_name, opened
    from compactmtl.export.in_bundle.show import save_map, words
except ImportError as error:
    sys.exit(f"error: {error}: pip install numpy pillow and the runtime")

HERE = Path(__file__).resolve().parent


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "images", nargs="*", type=Path, help="pictures; shares of a map are printed at the network's size"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for maps, .npy and .png; by default they lie beside each picture"
    )
    parser.add_argument("--check", action="store_true", help="hold the golden picture against what is stored")
    args = parser.parse_args()
    if args.check == bool(args.images):
        parser.error("give pictures, or --check")
    places = {path: (args.out or path.parent) / path.stem for path in args.images}
    twice = [str(path) for path in args.images if list(places.values()).count(places[path]) > 1]
    if twice:
        parser.error(
            f"maps of {' and '.join(twice)} would have the same names: run them apart, with another --out"
        )
    info = json.loads((HERE / "bundle.json").read_text("utf-8"))
    run, (want,) = opened(HERE, info, open_model), info["inputs"]
    for path in [HERE / info["golden"]["picture"]] if args.check else args.images:
        try:
            image = read(path, want)
        except ValueError as error:
            sys.exit(f"error: {error}")
        fed = prepare(image, want)
        outputs = run({want["name"]: fed})
        if args.check:
            return check(HERE, info, {want["name"]: fed, **outputs})
        for one in info["outputs"]:
            x = outputs[one["name"]][0]
            value = decode(x, one["decode"])
            size, rule = image.shape[:2], want["resize"]
            value = visible(value, size, rule) if one["map"] else value
            print(f"{path}: {one['name']} {words(one, x, value)}")
            value = back(value, size, rule, one["unknown"]) if one["map"] else value
            save_map(one, value, (args.out or path.parent) / f"{path.stem}.{file_name(one['name'])}")


if __name__ == "__main__":
    sys.exit(main())
