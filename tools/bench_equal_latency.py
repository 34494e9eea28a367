"""Whether shrinking to milliseconds beats a pruner, and shrinking by MACs, at the same latency of the exported file.

    python -m tools.bench_equal_latency --root /data/UTKFace --out runs/equal-latency

For each seed and each amount: Torch-Pruning's GroupNorm pruner takes that share of the MACs of `utkface/small`, with channels in
multiples of 8, and its exported file is timed beside the dense network's. `latency` is then shrunk to the same milliseconds, by
the measured staircase; `MACs` is shrunk to the MACs that are left of `latency`, with channels in multiples of 16.
All train for the same epochs; the epoch is chosen on a tenth of train, Δm is of val, and at the end all files of a seed are timed in
the same rounds. Prints one table of Markdown; the same command continues where it stopped, and one with other settings than a
folder was begun with is refused.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import COMPACT, EXPORT, SURGERY
from compactmtl.artifacts.run_folder import is_run
from compactmtl.backends import load_target
from compactmtl.backends.noise import noise_for
from compactmtl.config import resolve_recipe
from compactmtl.errors import TrainingError
from compactmtl.export import Bundle, export_run
from compactmtl.runs import Run, compact_run
from compactmtl.tasks.gain import delta_m
from compactmtl.train import train
from compactmtl.verify.latency import Fed, measure_latency, undisturbed
from tools.begun import differs

DENSE, PRUNER, LATENCY, MACS = "dense", "GroupNorm", "latency", "MACs"
HEADER = """\
| network | seeds | Δm to dense, % | MACs left | latency, of dense | latency, of GroupNorm |
| --- | ---: | ---: | ---: | ---: | ---: |"""


@dataclass(frozen=True)
class Row:
    """What is known of one run: its gain over dense, and MACs and milliseconds as shares of dense's."""

    gain: float
    macs: float
    time: float

    def against(self, other: Row) -> float:
        """Milliseconds as a share of another's."""
        return self.time / other.time


def trained(given: argparse.Namespace, name: str, seed: int, recipe: str, overrides: list[str]) -> Run:
    """A run, trained, compacted and exported where that is not done."""
    words = [
        f"data.root={given.root}",
        "data.holdout=0.1",
        "data.select_on=holdout",
        f"train.epochs={given.epochs}",
        f"seed={seed}",
        *overrides,
        *given.overrides,
    ]
    folder = given.out / f"seed{seed}" / name
    run = train(resolve_recipe(recipe, words), folder, resume=is_run(folder), console=Console(stderr=True))
    if not run.has_compact:
        compact_run(run)
    if not (run.path / EXPORT / given.target).is_dir():
        export_run(run, given.target, load_target(given.target))
    return run


def milliseconds(given: argparse.Namespace, runs: Mapping[str, Run]) -> dict[str, float]:
    """Of the exported files of some runs, all timed in the same rounds; as on idle cores."""
    with ExitStack() as stack:
        fed = {}
        for name, run in runs.items():
            runner = stack.enter_context(Bundle.open(run.path / EXPORT / given.target).runner())
            fed[name] = Fed(runner, noise_for(runner.inputs, 1))
        stats = measure_latency(fed, repeats=given.repeats, reference=DENSE).stats
    return {name: undisturbed(stats[DENSE], one)[1][0] for name, one in stats.items()}


def limit(given: argparse.Namespace, file: Path, dense: Run, pruner: Run) -> float:
    """The pruner's milliseconds; timed once, as what is trained to it must stay the same."""
    if not file.is_file():
        write_text(file, json.dumps({"ms": milliseconds(given, {DENSE: dense, PRUNER: pruner})}) + "\n")
    return float(json.loads(file.read_text(encoding="utf-8"))["ms"][PRUNER])


def macs(run: Run) -> float:
    """The share of the MACs that surgery left."""
    found = json.loads((run.path / COMPACT / SURGERY).read_text(encoding="utf-8"))["macs"]
    return float(found["after"] / found["before"])


def gain(run: Run, dense: Run) -> float:
    """Δm on val."""
    if run.val is None or dense.val is None:
        raise TrainingError(f"{run.path}: the run has no metrics of val", "give the same command again")
    return delta_m(run.val, dense.val, run.tasks)


def rows(given: argparse.Namespace, seed: int) -> dict[str, Row]:
    """All networks of a seed, trained where they are not there."""
    file = given.out / f"seed{seed}" / "rows.json"
    if file.is_file():
        return {name: Row(**one) for name, one in json.loads(file.read_text(encoding="utf-8")).items()}
    runs = {DENSE: trained(given, DENSE, seed, "utkface/small", [])}
    for amount in given.amounts:
        own = f"{amount:g}"
        runs[f"{PRUNER} {own}"] = pruner = trained(
            given,
            f"pruner-{own}",
            seed,
            "utkface/small-groupnorm",
            [f"sparsity.prune.mac_reduction={amount}"],
        )
        ms = limit(given, file.with_name(f"pruner-{own}.json"), runs[DENSE], pruner)
        budget = f"latency: {{target: {given.target}, ms: {ms:.4f}}}"
        runs[f"{LATENCY} {own}"] = ours = trained(
            given,
            f"latency-{own}",
            seed,
            "utkface/small",
            [
                "sparsity.groups=coupled",
                f"sparsity.selective={{{budget}, start: 0.1, end: 0.6}}",
                "sparsity.shrink_every=1",
            ],
        )
        runs[f"{MACS} {own}"] = trained(
            given,
            f"macs-{own}",
            seed,
            "utkface/small-sparse",
            [
                f"sparsity.selective.mac_reduction={1 - macs(ours):.4f}",
                "sparsity.shrink_every=1",
                "surgery.align=16",
            ],
        )
    times = milliseconds(given, runs)
    found = {
        name: Row(gain(run, runs[DENSE]), macs(run), times[name] / times[DENSE]) for name, run in runs.items()
    }
    write_text(file, json.dumps({name: vars(one) for name, one in found.items()}, indent=1) + "\n")
    return found


def spread(values: list[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.fmean(values):.{digits}f} ± {scale * deviation:.{digits}f}"


def line(name: str, seeds: list[dict[str, Row]]) -> str:
    """One row of the table."""
    own = [one[name] for one in seeds]
    _, _, amount = name.partition(" ")
    pruner = [one[f"{PRUNER} {amount}"] for one in seeds] if amount else []
    against = spread([a.against(b) for a, b in zip(own, pruner, strict=True)]) if pruner else ""
    return (
        f"| {name} | {len(own)} | {spread([one.gain for one in own], 100, 1)} | {spread([one.macs for one in own])} |"
        f" {spread([one.time for one in own])} | {against} |"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="of every recipe")
    parser.add_argument("--root", type=Path, required=True, help="the folder UTKFace, with train/ and val/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--amounts", type=float, nargs="+", default=[0.7, 0.9], help="of the MACs, for the pruner"
    )
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--repeats", type=int, default=400, help="rounds in which the files are timed")
    parser.add_argument("--out", type=Path, default=Path("runs/equal-latency"))
    given = parser.parse_args()
    made_with = ("amounts", "epochs", "target", "repeats", "overrides")
    if reason := differs(given.out, {key: getattr(given, key) for key in made_with}):
        parser.error(reason)
    seeds = [rows(given, seed) for seed in given.seeds]
    print(HEADER)
    for name in seeds[0]:
        print(line(name, seeds))


if __name__ == "__main__":
    main()
