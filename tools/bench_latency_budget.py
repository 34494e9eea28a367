"""Whether networks that are trained to latency budgets meet them, measured on their artifacts.

    python -m tools.bench_latency_budget --root utkface=/data/UTKFace --root ccp=/data/ccp --root sevenscenes=/data/7scenes

For every recipe, target and share of the dense network's time: training with that budget, surgery, export, and the latency of
the artifact beside the dense network in the same precision. Prints one table of Markdown. Results are kept in `--out`; the
same command continues where it stopped, and `--table` prints what is there. Training is short by default: the claim is about
time. The accuracy gate of the targets is off, so that int8 leaves no layer in float for a network that has learned little.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.run_folder import is_run
from compactmtl.backends import load_target
from compactmtl.config import resolve_recipe
from compactmtl.errors import CompactError
from compactmtl.export.run import export_run
from compactmtl.runs import Run, compact_run
from compactmtl.train import train
from compactmtl.verify.explain import explain
from compactmtl.verify.latency import undisturbed
from compactmtl.verify.result import Verification
from compactmtl.verify.speed import subject_latency
from tools.begun import differs

RECIPES = ("utkface/small", "ccp/small", "sevenscenes/small")
TARGETS = ("onnxruntime-cpu", "onnxruntime-cpu-int8", "openvino")
SHARES = (0.5, 0.33, 0.2)
OVERSHOOT = 0.08  # of the budget, that an artifact may be faster than asked
HEADER = """\
| recipe | target | budget | dense, ms | artifact, ms | of the budget | MACs left | times measured | in no step, of the gap | |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"""

Result = dict[str, Any]


def verdict(measured: float, budget: float) -> str:
    """Met, over the budget, or faster than asked by more than is allowed."""
    if not math.isfinite(measured) or measured > budget:
        return "**over the budget**"
    return "met" if measured >= (1 - OVERSHOOT) * budget else "met, **overshot**"


def row(result: Result) -> str:
    """One line of the table."""
    place = f"| `{result['recipe']}` | `{result['target']}` | {result['share']:.0%} |"
    if "failed" in result:
        return f"{place} — | — | — | — | — | — | {result['failed']} |"
    budget = result["share"] * result["dense_ms"]
    explained = "—" if result["unexplained"] is None else f"{abs(result['unexplained']):.0%}"
    return (
        f"{place} {result['dense_ms']:.3f} | {result['artifact_ms']:.3f} | {result['artifact_ms'] / budget:.0%} |"
        f" {result['macs_left']:.0%} | {result['checks']} | {explained} | {verdict(result['artifact_ms'], budget)} |"
    )


def measured(
    run: Run, recipe: str, target: str, share: float, macs_left: float, found: Verification
) -> Result:
    """What the table says of one artifact. Times are those of idle cores, as `undisturbed` has them."""
    latency = found.latency
    name, artifact = subject_latency(latency)
    dense = latency.stats[latency.reference]
    (whole, _), (own, _) = undisturbed(dense, artifact)
    try:
        why = explain(latency, found.measured, name, latency.reference)
        unexplained: float | None = why.remainder / why.gap if why.gap else None
    except CompactError:
        unexplained = None
    return {
        "recipe": recipe,
        "target": target,
        "share": share,
        "dense_ms": whole,
        "artifact_ms": own,
        "dense_wall_ms": dense.median_ms,
        "artifact_wall_ms": artifact.median_ms,
        "macs_left": macs_left,
        "checks": checks(run),
        "unexplained": unexplained,
        "device": artifact.device,
        "load": latency.load_average,
    }


def checks(run: Run) -> int:
    """How often choices were measured in training, by the run's log."""
    epochs = [json.loads(line) for line in (run.path / "log.jsonl").read_text("utf-8").splitlines()]
    counts = [
        len((one.get("sparsity") or {}).get("latency", ())) for one in epochs if one["event"] == "epoch"
    ]
    return max(counts, default=0)


def cell(given: argparse.Namespace, recipe: str, target: str, share: float, folder: Path) -> Result:
    """Train, compact, export and measure; what cannot be done is a result, too."""
    where = {"recipe": recipe, "target": target, "share": share}
    root = dict(given.root).get(recipe.partition("/")[0])
    overrides = [
        f"train.epochs={given.epochs}",
        "sparsity.scope=model",
        f"sparsity.selective={{latency: {{target: {target}, reduction: {1 - share:.4g}}}, start: 0.05, end: 0.7, min_channels: 4}}",
        f"targets=[{target}]",
        *([] if root is None else [f"data.root={root}"]),
        *given.overrides,
    ]
    try:
        resolved = resolve_recipe(recipe, overrides)
        run = train(resolved, folder, resume=is_run(folder), console=Console(stderr=True))
        report = compact_run(run).report
        spec = load_target(target)
        spec = spec.model_copy(
            update={
                "accuracy": spec.accuracy.model_copy(update={"export_drop": 1.0}),
                "latency": spec.latency.model_copy(update={"repeats": given.repeats}),
            }
        )
        found = export_run(run, target, spec)
    except CompactError as error:
        return {**where, "failed": error.message.replace("\n", " ")}
    return measured(run, recipe, target, share, report.macs_after / report.macs_before, found)


def results(given: argparse.Namespace) -> Iterator[Result]:
    """Every cell, from the folder where it is there, else made now."""
    for recipe in given.recipes:
        for target in given.targets:
            for share in given.shares:
                name = f"{recipe.replace('/', '-')}-{target}-{share:g}"
                file = given.out / f"{name}.json"
                if file.is_file():
                    yield json.loads(file.read_text("utf-8"))
                elif not given.table:
                    print(f"{recipe} on {target}, {share:.0%} of dense", file=sys.stderr, flush=True)
                    start = time.perf_counter()
                    result = cell(given, recipe, target, share, given.out / name)
                    result["seconds"] = time.perf_counter() - start
                    write_text(file, json.dumps(result, indent=1) + "\n")
                    yield result


def _root(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not (name and path):
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=FOLDER, such as utkface=/data/UTKFace")
    return name, path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="of every recipe")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="of dense's time")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100, help="rounds in which an artifact is timed")
    parser.add_argument("--root", type=_root, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, default=Path("runs/latency-budget"))
    parser.add_argument("--table", action="store_true", help="print what is there, and make nothing")
    given = parser.parse_args()
    if not all(0 < share < 1 for share in given.shares):
        parser.error("--shares are above 0 and below 1")
    made_with = {key: getattr(given, key) for key in ("epochs", "repeats", "overrides")}
    if not given.table and (reason := differs(given.out, made_with)):
        parser.error(reason)
    print(HEADER, flush=True)
    for result in results(given):
        print(row(result), flush=True)


if __name__ == "__main__":
    main()
