"""Run this bundle: `python infer.py INPUT=FILE... [--out FOLDER]`, or `--check`. bundle.json says what is done here.

Each input of a sample is named once; the next file of a name is of the next sample. A vector is a .npy file, or numbers
with commas, as in camera=525,525,319.5. Maps are named after the first picture of their sample.
"""

import argparse
import json
import sys
from pathlib import Path

try:
    from compactmtl.backends.onnxruntime.in_bundle import open_model
    from compactmtl.export.in_bundle.picture import back, visible
    from compactmtl.export.in_bundle.sample import load, samples
    from compactmtl.export.in_bundle.shared import check, decode, file_name, opened
    from compactmtl.export.in_bundle.show import save_map, words
except ImportError as error:
    sys.exit(f"error: {error}: pip install numpy pillow and the runtime")

HERE = Path(__file__).resolve().parent


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("inputs", nargs="*", help="INPUT=FILE, each input of a sample")
    parser.add_argument("--out", type=Path, help="folder for maps; by default they lie beside each picture")
    parser.add_argument("--check", action="store_true", help="hold the golden inputs against what is stored")
    args = parser.parse_args()
    if args.check == bool(args.inputs):
        parser.error("give inputs, or --check")
    info = json.loads((HERE / "bundle.json").read_text("utf-8"))
    run = opened(HERE, info, open_model)
    golden = {name: str(HERE / file) for name, file in info["golden"]["inputs"].items()}
    main_input = next(one["name"] for one in info["inputs"] if one["resize"])
    try:
        todo = [golden] if args.check else samples(args.inputs, info["inputs"])
        places = [(args.out or Path(one[main_input]).parent) / Path(one[main_input]).stem for one in todo]
        if len(set(places)) < len(places):
            raise ValueError("two first pictures would write the same files: give them other names")
    except ValueError as error:
        parser.error(str(error))
    for sample, place in zip(todo, places):
        try:
            fed, (size, rule) = load(sample, info["inputs"])
        except ValueError as error:
            sys.exit(f"error: {error}")
        outputs = run(fed)
        if args.check:
            return check(HERE, info, {**fed, **outputs})
        for one in info["outputs"]:
            x = outputs[one["name"]][0]
            value = decode(x, one["decode"])
            value = visible(value, size, rule) if one["map"] else value
            print(f"{sample[main_input]}: {one['name']} {words(one, x, value)}")
            value = back(value, size, rule, one["unknown"]) if one["map"] else value
            save_map(one, value, place.parent / f"{place.name}.{file_name(one['name'])}")


if __name__ == "__main__":
    sys.exit(main())
