"""`compactmtl compact`: contract a run's best model, remove its dead channels, prove the result."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compactmtl.cli.parser import add_device, add_tasks, add_trust, of_tasks, trusted

if TYPE_CHECKING:
    import torch

    from compactmtl.runs import Run
    from compactmtl.sparsity import LatencyTable

HELP = "remove the dead channels of a run's best model without changing its function"
EXAMPLE = """\
compactmtl compact runs/scenes-compact
compactmtl compact runs/utkface-compact --align 16 --evaluate
compactmtl compact runs/utkface-compact --latency onnxruntime-cpu
compactmtl compact runs/scenes-compact --tasks depth normals"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder that `train` wrote")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="where the run's data is on this machine, such as data.root=/data",
    )
    parser.add_argument(
        "--align",
        type=int,
        metavar="N",
        help="keep channel counts at multiples of N (default: the recipe's surgery.align)",
    )
    parser.add_argument(
        "--gather",
        action="store_true",
        help="let a layer select its channels by index where no order puts them in one piece",
    )
    parser.add_argument(
        "--latency",
        metavar="TARGET",
        help="leave dead channels without which the network is slower on this target, by a latency table that is measured here or"
        " in the cache",
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="the same by the latency table in this file, which `compactmtl latency RUN --out FILE` wrote",
    )
    parser.add_argument(
        "--no-join",
        action="store_true",
        help="leave layers in a row as they are, also where one layer in their place has fewer MACs",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="also evaluate the trained and the compact model on the val split",
    )
    add_tasks(parser)
    add_device(parser, "with --evaluate: run the models")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Compact a run and show what was removed."""
    from compactmtl.cli.disk import check_writable
    from compactmtl.errors import ConfigError, command

    if args.align is not None and args.align < 1:
        raise ConfigError(f"--align {args.align}: expected a positive number", "use 1, 8 or 16")
    from compactmtl.backends.torch.device import find_device
    from compactmtl.runs import Run, compact_run

    device = find_device(args.device, "--device")

    opened = Run.open(args.run, args.overrides)
    if args.overrides and not args.evaluate:
        print(
            f"note: {' '.join(args.overrides)} has no effect: data is read only with --evaluate",
            file=sys.stderr,
        )
    check_writable(opened.path)
    opened = of_tasks(opened, args)
    latencies = _latencies(opened, args)
    result = compact_run(opened, args.align, args.gather, not args.no_join, latencies)
    print(table(result.report.to_json()))
    if args.evaluate:
        print(compare(opened, device))
    print(f"compact model: {opened.path / 'compact'}")
    print(f"next: {command('export', opened.path, *args.overrides, *trusted(args))}")
    return 0


def _latencies(run: Run, args: argparse.Namespace) -> LatencyTable | None:
    """The latency table that is asked for: read, or measured for the run's plain network."""
    if args.table is None and args.latency is None:
        return None
    from compactmtl.artifacts.told import tell
    from compactmtl.backends import load_target
    from compactmtl.latency import check_target, latency_table
    from compactmtl.sparsity import LatencyTable

    if args.latency is None:
        return LatencyTable.load(args.table)
    target = load_target(args.latency)
    if args.table is not None:
        known = LatencyTable.load(args.table)
        check_target(known, args.latency, target)
        return known
    inputs = run.example_inputs(target.latency.batch)
    return latency_table(run.load_plain(), inputs, target, args.latency, progress=tell)


def table(surgery: Mapping[str, Any]) -> str:
    """surgery.json in lines: sizes, every layer that changed, layers that were not pruned, the proof."""
    rows = [("", "before", "after", "left")]
    for name in ("parameters", "macs"):
        before, after = surgery[name]["before"], surgery[name]["after"]
        label = "MACs" if name == "macs" else name
        rows.append((label, f"{before:,}", f"{after:,}", f"{after / max(before, 1):.1%}"))
    layers = [layer for layer in surgery["layers"] if layer["before"] != layer["after"]]
    for layer in layers:
        macs = layer["macs"]
        remaining = f"{macs['after'] / macs['before']:.1%} of MACs" if macs["before"] else ""
        rows.append((layer["name"], _channels(layer["before"]), _channels(layer["after"]), remaining))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        for row in rows
    ]
    if surgery.get("align", 1) > 1:
        lines.append(f"channel counts are multiples of {surgery['align']}: some dead channels stay for that")
    if not layers:
        lines.append("no channel could be removed; was the run trained with sparsity?")
    for name, how in (("spans", "in one piece"), ("gathers", "by index")):
        if surgery.get(name):
            lines.append(
                f"{len(surgery[name])} layers take a part of the channels around them, {how}: {_first(surgery[name])}"
            )
    if surgery.get("unreached"):
        lines.append(f"not reached by the forward pass: {', '.join(surgery['unreached'])}")
    lines += _of_rows(surgery)
    if surgery.get("timing"):
        lines += _timing(surgery["timing"])
    not_pruned = surgery.get("not_pruned", surgery.get("kept_whole"))  # its name in earlier versions
    if not_pruned:
        lines.append(f"not pruned: {len(not_pruned)} layers")
        lines += [f"  {layer['name']}: {layer['reason']}" for layer in not_pruned[:5]]
    proof = surgery["proof"]
    lines.append(
        f"proof: largest difference {proof['max_relative_error']:.1e} of the output's range in {proof['dtype']} "
        f"over {len(proof['cases'])} inputs (tolerance {proof['tolerance']:.0e}), {surgery['seconds']:.1f} s"
    )
    return "\n".join(lines)


def _of_rows(surgery: Mapping[str, Any]) -> list[str]:
    """Layers in a row that became one, and those that did nothing; files of earlier versions have neither."""
    lines = [f"joined into {one['into']}: {' '.join(one['layers'])}" for one in surgery.get("joined", ())]
    if left := surgery.get("identities"):
        lines.append(f"hand on their input as it is, and left: {' '.join(left)}")
    return lines


def _timing(timing: Mapping[str, Any]) -> list[str]:
    """What the network takes by a latency table, and what was left for that."""
    lines = [
        f"{timing['target']}, by its latency table: {timing['before']:.3f} ms before, {timing['after']:.3f} ms after"
        f" ({timing['all_removed']:.3f} ms without every dead channel)"
    ]
    lines += [
        f"  left in {one['name']}: {one['channels']} dead channels, {one['macs']:,} MACs; without them it takes"
        f" {one['milliseconds']:.4f} ms more"
        for one in timing["left"]
    ]
    return lines


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _channels(out_and_in: list[int]) -> str:
    outputs, inputs = out_and_in
    return f"{inputs}→{outputs}" if outputs else "gone"


def compare(run: Run, device: torch.device) -> str:
    """Metrics of the trained and the compact model on the val split, side by side."""
    from compactmtl.data import build_loader, load_dataset
    from compactmtl.train.tracking import format_metric
    from compactmtl.verify.accuracy import evaluate_on

    data = run.recipe.data
    loader = build_loader(load_dataset(data, "val"), data, train=False, seed=run.recipe.seed)
    trained = evaluate_on(run.load_plain(), device, loader, run.tasks)
    compacted = evaluate_on(run.load_compact(), device, loader, run.tasks)
    lines = ["val, trained and compact:"]
    for name, task in run.measured.items():
        for metric, value in trained[name].items():
            other = compacted[name][metric]
            lines.append(
                f"  {name} {format_metric(task, metric, value)}, {format_metric(task, metric, other)} "
                f"(difference {abs(other - value):.1e})"
            )
    return "\n".join(lines)
