"""`compactmtl export`: export a run for its targets and verify what came out."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from compactmtl.artifacts.told import tell
from compactmtl.cli.export_file import add_file_options
from compactmtl.cli.kits import add_kit
from compactmtl.cli.parser import add_device, add_tasks, add_trust, of_tasks, trusted

if TYPE_CHECKING:
    from compactmtl.config import Target
    from compactmtl.errors import CompactError
    from compactmtl.export.prepare import Prepared
    from compactmtl.runs import Run
    from compactmtl.verify import AccuracyResult, GateResult, LatencyResult, ParityResult, Verification
    from compactmtl.verify.gates import Scored

HELP = "export a run, or an ONNX file, for targets and verify each artifact: parity, accuracy, latency, gates"
EXAMPLE = """\
compactmtl export runs/scenes-compact --target onnxruntime-cpu --baseline runs/scenes-dense
compactmtl export runs/scenes-compact --target all-available --baseline runs/scenes-dense
compactmtl export runs/utkface-compact
compactmtl export runs/utkface-compact --target tensorrt-fp16 --kit-out kit.zip --kit-images 50
compactmtl export small.onnx --target onnxruntime-cpu-int8 --calibration samples.npz --tolerance 0.05"""
ALL = "all-available"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "run", metavar="RUN", help="a run folder that `train` wrote, or a float32 ONNX file from elsewhere"
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="where the run's data is on this machine, such as data.root=/data",
    )
    parser.add_argument(
        "--target",
        metavar="NAME",
        nargs="+",
        help=f"targets by name or path (see `targets list`), or {ALL}: every known target that can run here "
        "(default: the recipe's targets)",
    )
    parser.add_argument(
        "--baseline",
        metavar="RUN",
        help="dense run (of an ONNX file: another file) that accuracy and latency are compared with",
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="for targets that cannot run here: write the graph, inputs, expected outputs and commands, marked as not run",
    )
    add_tasks(parser, "; of an ONNX file: the bundle's folder (default: FILE-TARGET beside it)")
    add_kit(parser)
    add_file_options(parser)
    add_device(parser, "evaluate the torch models, which the artifacts are held against,")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Export to each target; a failure of one fails the command after all others are done."""
    from compactmtl.backends.torch.device import find_device
    from compactmtl.cli.export_file import export_file, is_file
    from compactmtl.cli.kits import kit_places, write_one
    from compactmtl.cli.preparing import prepare_missing, raise_missing
    from compactmtl.errors import CompactError, command
    from compactmtl.export import export_run
    from compactmtl.export.run import budget_of, check_baseline, same_network
    from compactmtl.runs import Run
    from compactmtl.verify.gates import raise_failed

    if is_file(args):
        return export_file(args, _targets(args.target or [], f"{args.run} is a file, and no target is named"))
    device = find_device(args.device, "--device")
    opened = _chosen(Run.open(args.run, args.overrides), args)
    baseline = Run.open(args.baseline, args.overrides) if args.baseline else None
    if baseline is not None:
        check_baseline(opened, baseline)
    targets = _targets(args.target or opened.recipe.targets, f"the recipe of {opened.path} names no target")
    if args.prepare:
        _check_prepare(args, targets)
    places = kit_places(args, opened, targets)
    uncompacted = _uncompacted(opened)
    print("".join(f"{line}\n" for line in uncompacted), end="", file=sys.stderr)
    verifications: dict[str, Verification] = {}
    errors: dict[str, CompactError] = {}
    prepared: dict[str, Prepared] = {}
    for name, target in targets.items():
        print(f"{opened.name} for {name}", file=sys.stderr)
        try:
            if (args.prepare or places) and (missing := prepare_missing(opened, name, target, tell, device)):
                prepared[name] = missing
                write_one(args, opened, name, baseline, places)
                continue
            verification = export_run(opened, name, target, baseline, progress=tell, device=device)
        except CompactError as error:
            if len(targets) == 1:
                raise
            errors[name] = error
            print(f"  failed: {error.message}\n", file=sys.stderr)
            continue
        verifications[name] = verification
        print("\n".join(summary(verification, opened.tasks)))
        if target.accuracy.compact_drop is not None and baseline is None:
            print("not checked: the accuracy against a dense baseline (give --baseline RUN)")
        budget = budget_of(opened, name)
        unchecked = budget is not None and budget.ms is None
        if baseline is not None and budget is not None and unchecked and not same_network(opened, baseline):
            print(
                f"not checked: the recipe's latency budget, {budget.limit}, is against the run's own network before surgery"
                " (export without --baseline)"
            )
        print(f"bundle: {opened.path / 'export' / name}\n")
        write_one(args, opened, name, baseline, places)
    against = ("--baseline", baseline.path) if baseline else ()
    print(f"next: {command('report', opened.path, *against, *args.overrides, *trusted(args))}")
    if verifications:
        print("".join(f"{line}\n" for line in uncompacted), end="", file=sys.stderr)
    gates = {name: one.gates for name, one in verifications.items()}
    if errors:
        raise _combined(errors, [name for name, one in verifications.items() if not one.passed])
    raise_failed(
        tuple(gate for several in gates.values() for gate in several), f"{opened.path} for {', '.join(gates)}"
    )
    raise_missing(prepared, wanted=bool(places))
    return 0


def _chosen(run: Run, args: argparse.Namespace) -> Run:
    """The run itself or, with --tasks, that of some of its tasks, compacted where the run is."""
    from compactmtl.runs import compact_run

    chosen = of_tasks(run, args)
    if run.has_compact and not chosen.has_compact:
        print(f"compacting {chosen.path}", file=sys.stderr)
        compact_run(chosen)
    return chosen


def _uncompacted(run: Run) -> list[str]:
    """The warning for a run that learned to do without channels which are still there."""
    from compactmtl.errors import command

    if run.recipe.sparsity is None or run.has_compact:
        return []
    return [
        f"WARNING: {run.path} was trained with sparsity but not compacted: the exported model still has its dead "
        "channels, and is as large and as slow as before",
        f"  compact the run and export again: {command('compact', run.path)}",
    ]


def _check_prepare(args: argparse.Namespace, targets: Mapping[str, Target]) -> None:
    """Raise ConfigError where --prepare has nothing to prepare; say what of the command line it leaves unused."""
    from compactmtl.backends import get_backend
    from compactmtl.errors import ConfigError

    able = [name for name, one in targets.items() if get_backend(one.backend).availability(one).available]
    if len(able) == len(targets):
        can = f"{able[0]} can" if len(able) == 1 else f"{', '.join(able)} can all"
        raise ConfigError(f"{can} run here: there is nothing to prepare", "export without --prepare")
    for name in able:
        print(f"note: {name} can run here; it is exported and verified instead of prepared", file=sys.stderr)
    if args.baseline is not None:
        missing = ", ".join(name for name in targets if name not in able)
        print(
            f"note: --baseline has no effect on {missing}: a prepared target is not compared", file=sys.stderr
        )


def _targets(chosen: Sequence[str], nothing: str) -> dict[str, Target]:
    """Targets by the name of their folder; all are read before any is exported.

    A target given by path is named after its file. Raises ConfigError on none, or two of one name.
    """
    from pathlib import Path

    from compactmtl.backends import load_target
    from compactmtl.errors import ConfigError

    if ALL in chosen:
        if len(chosen) > 1:
            raise ConfigError(f"{ALL} already names every target", f"give only --target {ALL}")
        return _available()
    names = {Path(name).stem: name for name in chosen}
    if len(names) < len(chosen):
        raise ConfigError("two targets have the same name and would share a folder", "rename one of them")
    if not names:
        raise ConfigError(nothing, "give --target NAME")
    return {stem: load_target(name) for stem, name in names.items()}


def _available() -> dict[str, Target]:
    """Every named target but examples whose backend runs an exported file here; says which were left out, and why."""
    from compactmtl.backends import get_backend, load_target
    from compactmtl.config import list_targets
    from compactmtl.errors import MissingDependencyError

    available: dict[str, Target] = {}
    left_out: list[str] = []
    for entry in list_targets():
        target = load_target(entry.name)
        backend = get_backend(target.backend)
        if target.example or not backend.opens_files:
            continue
        availability = backend.availability(target)
        if availability.available:
            available[entry.name] = target
        else:
            left_out.append(f"{entry.name}: {availability.reason}")
    print("\n".join(f"skipped {line}" for line in left_out), end="\n\n" if left_out else "")
    if not available:
        raise MissingDependencyError("no target can run here", "`compactmtl doctor` shows what is missing")
    return available


def _combined(errors: Mapping[str, CompactError], failed: Sequence[str]) -> CompactError:
    """One error of several targets; a failed gate decides the exit code where there is one."""
    from compactmtl.errors import GATE, CompactError

    codes = [error.exit_code for error in errors.values()]
    lines = [f"{name}: {error.message}" for name, error in errors.items()]
    lines += [f"{name}: failed its gates (listed above)" for name in failed]
    code = GATE if failed or GATE in codes else codes[0]
    return CompactError(
        f"{len(lines)} targets failed: " + "; ".join(lines), next(iter(errors.values())).hint, exit_code=code
    )


def summary(verification: Verification, tasks: Mapping[str, Scored]) -> Iterator[str]:
    """A verification in lines for a terminal."""
    if verification.accuracy.samples:
        yield f"accuracy on {verification.accuracy.samples} validation images:"
        yield from accuracy_lines(verification.accuracy, tasks)
    yield parity_line(verification.parity)
    yield from latency_lines(verification.latency)
    yield f"size: {verification.megabytes:.2f} MB"
    yield from gate_lines(verification.gates)


def parity_line(parity: ParityResult, samples: str = "images") -> str:
    """The output that is closest to its tolerance, or beyond it."""
    worst = max(parity.outputs, key=lambda one: (one.max_relative / one.tolerance, one.max_relative))
    bound = "not bounded" if math.isinf(worst.tolerance) else f"tolerance {worst.tolerance:.0e}"
    return (
        f"parity: largest difference {worst.max_relative:.1e} of the output's range ({worst.name},"
        f" {bound}) over {parity.samples} {samples}"
    )


def gate_lines(gates: Sequence[GateResult]) -> Iterator[str]:
    """How many gates hold, and each that does not."""
    failed = [gate for gate in gates if not gate.passed]
    bounded = "" if any(gate.gate == "accuracy" for gate in gates) else "; none is on accuracy"
    yield f"gates: {len(gates) - len(failed)} of {len(gates)} hold{bounded}"
    yield from (f"  failed: {gate.message}" for gate in failed)
    yield from (f"  warning: {gate.message}" for gate in gates if gate.warning)


def latency_lines(latency: LatencyResult, elsewhere: int | None = None) -> Iterator[str]:
    """Each model's latency, how much faster it is than what it is held against, and whether the machine was busy.

    Ratios are medians over rounds of the ratio in the same round, with their 10–90 % band. `elsewhere` is the number of
    processors of the machine where it was measured, if that is not this one.
    """
    from compactmtl.backends.machine import cpu_count
    from compactmtl.verify.speed import band_in_words, speeds, told

    lines: dict[str, list[str]] = {name: [] for name in latency.stats}
    for speed in speeds(latency):
        band = band_in_words(speed)
        lines[speed.name].append(told(speed) + (f", {band} by round" if band else ""))

    for name, stat in latency.stats.items():
        threads = "" if stat.threads is None else f", {stat.threads} thread{'s' if stat.threads > 1 else ''}"
        yield (
            f"latency {name}: median {stat.median_ms:.2f} ms (p90 {stat.p90_ms:.2f}, p99 {stat.p99_ms:.2f},"
            f" n {len(stat.samples_ms)}) at batch {stat.batch}{threads}"
        )
        yield from (f"  {line}" for line in lines[name])
    processors = cpu_count() if elsewhere is None else elsewhere
    if latency.load_average is not None and latency.load_average > processors:
        yield (
            f"  the machine was busy (load {latency.load_average:.1f} on {processors} processors), so that these"
            " times are not reliable"
        )


def accuracy_lines(accuracy: AccuracyResult, tasks: Mapping[str, Scored]) -> Iterator[str]:
    """Every metric of torch's model, the artifact and, where there is one, the baseline, as a table."""
    from compactmtl.tasks.by_source import task_of

    rows = [("", "", "torch", "artifact", *(["baseline"] if accuracy.baseline else []))]
    for task, metrics in accuracy.torch.items():
        for metric, value in metrics.items():
            others = [accuracy.artifact, *([accuracy.baseline] if accuracy.baseline else [])]
            values = [value, *(one.get(task, {}).get(metric, math.nan) for one in others)]
            info = tasks[task_of(task)].metric_info[metric]
            shown = [
                f"{v:.2%}" if info.share else f"{v:.4g}{' ' + info.unit if info.unit else ''}" for v in values
            ]
            rows.append((task, metric, *shown))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        names = "  ".join(f"{cell:<{width}}" for cell, width in zip(row[:2], widths[:2], strict=True))
        right = "  ".join(f"{cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True))
        yield f"  {names}  {right}".rstrip()
