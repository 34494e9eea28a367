"""`python kit.py` of a table kit: time a network and cuts of it, step by step, where they are to be deployed. Part of kit.py.

Nothing is fitted here: the results hold times, of which `compactmtl latency --from` makes a table.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from compactmtl.backends.device import DAMAGED, MISSING, DeviceModel, DeviceRuntime, KitError
from compactmtl.export.kit.condition import condition, described, held_back
from compactmtl.export.kit.on_device import (
    BUILT,
    INPUTS,
    MANIFEST,
    RESULTS,
    SCRIPT,
    VERSION,
    check_files,
    digest,
    read_manifest,
    say,
    write_json,
)
from compactmtl.verify.rounds import timed_rounds

TABLE = "table"  # the kind of a kit and of its results


def time_networks(runtime: DeviceRuntime, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Of every network its runs, and the median of every step, one network after the other. Raises KitError."""
    with np.load(folder / INPUTS, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in manifest["inputs"]}
    plan, found = manifest["latency"], {}
    started = time.monotonic()
    for number, (name, one) in enumerate(manifest["networks"].items()):
        left = (time.monotonic() - started) / max(number, 1) * (len(manifest["networks"]) - number)
        say(
            f"timing network {number + 1} of {len(manifest['networks'])}"
            + (f", about {left:.0f} s to go" if number else "")
        )
        model = runtime.open(folder / one["file"], arrays, folder / BUILT / name)
        try:
            found[name] = time_one(model, arrays, plan)
        finally:
            model.close()
    return found


def time_one(model: DeviceModel, arrays: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Of one network its runs, without a profiler, then its steps by the runtime's own. Raises KitError."""
    begun = time.perf_counter()
    model.run(arrays)
    once = max(time.perf_counter() - begun, 1e-6)
    repeats = int(min(max(plan["seconds"] / once / 2, plan["least"]), plan["most"]))
    samples, _ = timed_rounds({"it": lambda: model.run(arrays)}, plan["warmup"], repeats, 0)
    return {
        "samples_ms": samples["it"],
        "steps": model.layer_times(arrays, repeats),
        "facts": model.facts(),
    }


def main_of_table(kind: type[DeviceRuntime], folder: Path, argv: list[str] | None = None) -> int:
    """Run the table kit in `folder`; the exit code: 0, 2 a damaged kit, 3 something is missing."""
    parser = argparse.ArgumentParser(
        prog=f"python {SCRIPT}", description="Time this kit's networks on this machine and write the results."
    )
    parser.add_argument("--name", default="", help="what this device is called (default: its own name)")
    parser.add_argument(
        "--out", type=Path, default=Path(RESULTS), help=f"file of the results (default: {RESULTS})"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="measure a latency table: what this kit does, with the word or without",
    )
    args = parser.parse_args(argv)
    try:
        manifest, kit = read_manifest(folder)
        if manifest.get("kind") != TABLE:
            raise KitError(f"{folder / MANIFEST} is of another kind of kit", "copy the whole kit again")
        files = check_files(folder, manifest)
        runtime = kind(manifest["runtime"])
        lacking = runtime.missing()
        if lacking:
            raise KitError(
                "; ".join(what for what, _ in lacking),
                "needed: " + "; ".join(mend for _, mend in lacking),
                MISSING,
            )
        machine, states = described(), [condition(runtime.board())]
        networks = time_networks(runtime, folder, manifest)
        states.append(condition(runtime.board()))
        device = runtime.device()
        results: dict[str, Any] = {
            "version": VERSION,
            "kind": TABLE,
            "kit": kit,
            "manifest": (folder / MANIFEST).read_text(encoding="utf-8"),
            "files": files,
            "name": args.name or machine["board"] or device,
            "device": device,
            "versions": {**runtime.versions(), "python": platform.python_version()},
            "networks": networks,
            "states": states,
            "held_back": held_back(states),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        }
        results["digest"] = digest(results)
        write_json(args.out, results)
    except KitError as error:
        print(f"error: {error.message}\n  {error.mend}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"error: {error}\n  check the path, its rights and the free space", file=sys.stderr)
        return DAMAGED
    whole = float(np.median(networks[manifest["whole"]]["samples_ms"]))
    print(f"device: {results['name']}: {device}; the whole network takes {whole:.3f} ms")
    for reason in results["held_back"] or ():
        print(f"the machine held itself back: {reason}")
    there = shlex.join(["compactmtl", "latency", "--from", str(args.out), "--out", "TABLE.json"])
    print(f"wrote {args.out}: take it back, and run there: {there}")
    return 0
