"""`python kit.py`: run a kit's models where they are to be deployed, and write what was found. Part of kit.py.

Files of a kit are held against the hashes in its manifest first. Nothing is judged here: the results hold numbers, and
`compactmtl collect` holds them against the target's bounds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compactmtl.backends.chunks import in_chunks
from compactmtl.backends.device import DAMAGED, MISSING, WRONG, DeviceModel, DeviceRuntime, KitError
from compactmtl.export.kit.condition import condition, described, held_back
from compactmtl.verify.rounds import timed_rounds
from compactmtl.verify.tally import Tally

MANIFEST = "kit.json"
SCRIPT = "kit.py"
INPUTS, REFERENCES, IMAGES = "inputs.npz", "references.npz", "images.npz"
RESULTS = "results.json"
VERSION = 1
PHASE_RUNS = 20
BUILT = "built"  # folder of what a runtime builds on the device


def digest(body: dict[str, Any]) -> str:
    """SHA-256 over what a results file says, its own digest apart.

    It tells a file that was edited or cut off. It is no signature: whoever changes the file on purpose can write a new
    digest.
    """
    content = {key: value for key, value in body.items() if key != "digest"}
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def array_key(case: int, name: str) -> str:
    """The name of an array of one case in an .npz file."""
    return f"case{case}.{name}"


def read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """The manifest of the kit in `folder`, and its hash. Raises KitError."""
    path = folder / MANIFEST
    try:
        with path.open(encoding="utf-8") as file:
            manifest: dict[str, Any] = json.load(file)
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"{path} can't be read: {error}", "copy the whole kit again") from error
    if version != VERSION:
        raise KitError(f"{path} is of version {version}, this kit.py reads {VERSION}", "export the kit again")
    return manifest, file_sha256(path)


def check_files(folder: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """The hashes of the kit's files as they are here. Raises KitError naming one that is missing or another."""
    found = {}
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            found[name] = file_sha256(path)
        except OSError as error:
            raise KitError(f"{path} can't be read: {error.strerror}", "copy the whole kit again") from error
        if found[name] != expected:
            raise KitError(
                f"{path} is not the file that was exported: its hash is off", "copy the whole kit again"
            )
    return found


def load_cases(folder: Path, manifest: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and the torch model's outputs of every case, by name."""
    with np.load(folder / INPUTS, allow_pickle=False) as arrays:
        inputs = [
            {name: arrays[array_key(case, name)] for name in manifest["inputs"]}
            for case in range(manifest["cases"])
        ]
    with np.load(folder / REFERENCES, allow_pickle=False) as arrays:
        references = [
            {name: arrays[array_key(case, name)] for name in manifest["outputs"]}
            for case in range(manifest["cases"])
        ]
    return inputs, references


def compare(
    model: DeviceModel, inputs: list[dict[str, Any]], references: list[dict[str, Any]]
) -> dict[str, Any]:
    """Differences of the model's outputs from the torch model's, by output. Raises KitError where none can be taken."""
    tallies: dict[str, Tally] = {}
    broken: dict[str, int] = {}
    for arrays, expected in zip(inputs, references):
        found = model.run(arrays)
        if list(found) != list(expected):
            raise KitError(
                f"the model's outputs are {list(found)}, expected {list(expected)}",
                "export the kit again",
                WRONG,
            )
        for name, reference in expected.items():
            output = found[name]
            if output.shape != reference.shape or output.dtype != reference.dtype:
                raise KitError(
                    f"output '{name}' is {output.dtype} of shape {output.shape}, expected {reference.dtype} of shape"
                    f" {reference.shape}",
                    "export the kit again",
                    WRONG,
                )
            bad = int(output.size - np.isfinite(output).sum())
            if bad:
                broken[name] = broken.get(name, 0) + bad
            else:
                tallies.setdefault(name, Tally(reference.shape)).add(reference, output)
    samples = sum(len(next(iter(arrays.values()))) for arrays in inputs)
    outputs = {name: vars(tally.result()) for name, tally in tallies.items() if name not in broken}
    return {"samples": samples, "outputs": outputs, "not_finite": broken}


def measure(
    models: dict[str, DeviceModel], arrays: dict[str, Any], plan: dict[str, Any], board: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Latencies in interleaved rounds, and the state of the machine and of its GPU `board` before, half way and after."""
    states = [condition(board)]
    half = plan["repeats"] // 2

    def between(index: int) -> None:
        if index + 1 == half:
            states.append(condition(board))

    def call_of(model: DeviceModel) -> Callable[[], object]:
        return lambda: model.run(arrays)

    settle = plan["settle"] if len(models) > 1 else 0
    calls = {name: call_of(model) for name, model in models.items()}
    samples, process = timed_rounds(calls, plan["warmup"], plan["repeats"], settle, between)
    states.append(condition(board))
    phases = {name: found for name, model in models.items() if (found := split(model, arrays)) is not None}
    latency = {
        "batch": len(next(iter(arrays.values()))),
        "warmup": plan["warmup"],
        "settle": settle,
        "samples_ms": samples,
        "process_ms": process,
        "phases_ms": phases,
        "load_average": states[0]["load"],
    }
    return latency, states


def split(model: DeviceModel, arrays: dict[str, Any]) -> list[list[float]] | None:
    """Copy in, compute and copy out of several runs by the GPU's own clock, in ms; None where it has none."""
    if model.phases(arrays) is None:
        return None
    runs = [model.phases(arrays) for _ in range(PHASE_RUNS)]
    return [list(one) for one in runs if one is not None]


def answer(model: DeviceModel, folder: Path, manifest: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the model's outputs for the packed images beside the results; what the results say of that file."""
    with np.load(folder / IMAGES, allow_pickle=False) as images:
        arrays = {name: images[name] for name in manifest["inputs"]}
    outputs = in_chunks(model.run, arrays, int(manifest["images"]["batch"]))
    path = out.with_suffix(".outputs.npz")
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        np.savez_compressed(file, **outputs)  # type: ignore[arg-type]
    partial.replace(path)
    return {
        "file": path.name,
        "sha256": file_sha256(path),
        "count": len(next(iter(arrays.values()))),
    }


def run_kit(
    runtime: DeviceRuntime,
    folder: Path,
    manifest: dict[str, Any],
    kit: str,
    files: dict[str, str],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Open, compare, measure and answer; the results. Raises KitError."""
    inputs, references = load_cases(folder, manifest)
    machine = described()
    models: dict[str, DeviceModel] = {}
    facts: dict[str, Any] = {}
    try:
        for name, one in manifest["models"].items():
            path = folder / one["file"]
            say(f"opening {name}")
            models[name] = runtime.open(path, inputs[0], folder / BUILT / name)
            facts[name] = models[name].facts()
        subject = models[manifest["subject"]]
        say("comparing outputs with torch's")
        parity = compare(subject, inputs, references)
        plan = dict(manifest["latency"])
        plan["repeats"] = args.repeats or plan["repeats"]
        say(f"measuring latency, {plan['repeats']} rounds of {', '.join(models)}")
        latency, states = measure(models, inputs[0], plan, runtime.board())
        images = None
        if manifest["images"] is not None:
            say(f"running {manifest['images']['count']} images of the val split")
            images = answer(subject, folder, manifest, args.out)
    finally:
        for model in models.values():
            model.close()
    device = runtime.device()
    results: dict[str, Any] = {
        "version": VERSION,
        "kit": kit,
        "files": files,
        "name": args.name or machine["board"] or device,
        "device": device,
        "machine": machine,
        "versions": {
            **runtime.versions(),
            "python": platform.python_version(),
            "numpy": str(np.__version__),
        },
        "models": facts,
        "parity": parity,
        "latency": latency,
        "states": states,
        "held_back": held_back(states),
        "images": images,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }
    results["digest"] = digest(results)
    return results


def summary(results: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """The results in lines for a terminal."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [f"device: {results['name']}: {results['device']}; {versions}"]
    for name, facts in results["models"].items():
        layers = facts.get("layers")
        if layers is None:
            told = "types are in the engine inspector's answer, which the verb `collect` reads"
        else:
            told = ", ".join(f"{count} layers in {kind}" for kind, count in layers.items()) or "no layer told"
        lines.append(f"types of {name}: {told}; asked for {manifest['models'][name]['precision']}")
    for name, one in results["parity"]["outputs"].items():
        bound = manifest["tolerances"][name]
        held = (
            "" if bound is None else f", {'within' if one['max_relative'] <= bound else 'BEYOND'} {bound:g}"
        )
        lines.append(f"parity of {name}: {one['max_relative']:.1e} of the range{held}")
    for name, count in results["parity"]["not_finite"].items():
        lines.append(f"parity of {name}: {count} values are NaN or infinite")
    samples = {name: np.array(times) for name, times in results["latency"]["samples_ms"].items()}
    reference = samples[manifest["reference"]]
    for name, times in samples.items():
        middle, high = np.percentile(times, [50, 90])
        line = f"latency of {name}: median {middle:.3f} ms, p90 {high:.3f} ms"
        if name != manifest["reference"]:
            low, ratio, top = np.percentile(reference / times, [10, 50, 90])
            line += f"; {ratio:.2f} ({low:.2f} to {top:.2f}) times as fast as {manifest['reference']}"
        lines.append(line)
    reasons = results["held_back"]
    if reasons is None:
        lines.append("whether the machine throttled: the system does not tell")
    else:
        lines.append(
            "the machine held itself back: " + "; ".join(reasons) if reasons else "no throttling was seen"
        )
    return lines


def say(line: str) -> None:
    """Progress, beside the results."""
    print(f"  {line} …", file=sys.stderr, flush=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file at once."""
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")
    partial.replace(path)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python {SCRIPT}",
        description="Measure this kit's models on this machine and write the results.",
    )
    parser.add_argument(
        "--name", default="", help="what reports call this device (default: its board or processor)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(RESULTS), help=f"file of the results (default: {RESULTS})"
    )
    parser.add_argument(
        "--repeats", type=int, default=0, help="rounds of the latency (default: the target's)"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="measure a latency table, which takes a kit of its own: says how to get one",
    )
    return parser.parse_args(argv)


def main(kind: type[DeviceRuntime], folder: Path, argv: list[str] | None = None) -> int:
    """Run the kit in `folder`; the exit code: 0, 2 a damaged kit, 3 something is missing, 4 outputs that are wrong."""
    args = arguments(argv)
    try:
        if args.table:
            there = shlex.join(["compactmtl", "latency", "RUN", "--target", "NAME", "--kit", "table-kit.zip"])
            raise KitError(
                "this kit holds whole models, and a latency table is made of the times of their cuts",
                f"run where the model was exported, and run that kit here: {there}",
            )
        if args.repeats < 0:
            raise KitError(f"--repeats {args.repeats} is no number of rounds", "give one of 1 or more")
        manifest, kit = read_manifest(folder)
        files = check_files(folder, manifest)
        runtime = kind(manifest["runtime"])
        lacking = runtime.missing()
        if lacking:
            raise KitError(
                "; ".join(what for what, _ in lacking),
                "needed: " + "; ".join(mend for _, mend in lacking),
                MISSING,
            )
        results = run_kit(runtime, folder, manifest, kit, files, args)
        write_json(args.out, results)
    except KitError as error:
        print(f"error: {error.message}\n  {error.mend}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"error: {error}\n  check the path, its rights and the free space", file=sys.stderr)
        return DAMAGED
    print("\n".join(summary(results, manifest)))
    beside = f" and {results['images']['file']}" if results["images"] else ""
    there = shlex.join(["compactmtl", "collect", "RUN", str(args.out)])
    print(f"wrote {args.out}{beside}: take it back, and run there: {there}")
    return 0
