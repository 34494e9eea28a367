"""`compactmtl train`: train a recipe into a run folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from compactmtl.cli.parser import add_trust, trusted

if TYPE_CHECKING:
    from compactmtl.train import DryRun
    from compactmtl.train.sparse import Foreseen

HELP = "train a recipe into a run folder"
EXAMPLE = """\
compactmtl train scenes/compact
compactmtl train utkface/dense data.root=/data train.epochs=5 --name faces-short
compactmtl train utkface/dense data.root=/data --task age
compactmtl train utkface/dense data.root=/data --dry-run
compactmtl train utkface/dense data.root=/data --resume
torchrun --nproc-per-node 4 -m compactmtl train utkface/dense data.root=/data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe by name or path (see `recipes list`)")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="values that override the recipe, such as train.epochs=5",
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        action="append",
        default=[],
        help="train only this task; repeat the option for several tasks",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="train two steps on small images, to check that everything is in place",
    )
    parser.add_argument("--out", metavar="DIR", default="runs", help="folder of runs (default: runs)")
    parser.add_argument(
        "--name", help="name of the run (default: the names of the recipe and of --task, joined by -)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="with --resume: continue although the data set has changed since the run began",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run of the same name")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show shapes, parameters, MACs, memory and time of one batch; write nothing",
    )
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Train, or show what training needs."""
    import sys
    from pathlib import Path

    from compactmtl.config import resolve_recipe
    from compactmtl.config.smoke import resolve_smoke
    from compactmtl.errors import ConfigError, command

    if args.accept_changed_data and not args.resume:
        raise ConfigError("--accept-changed-data needs --resume", "give both options, or neither")
    resolve = resolve_smoke if args.smoke else resolve_recipe
    resolved = resolve(args.recipe, args.overrides, tasks=args.task)
    default = "-".join([*resolved.name.split("/"), *args.task, *(["smoke"] if args.smoke else [])])
    path = Path(args.out) / (args.name or default)
    from compactmtl.data.datasets import check_root

    check_root(resolved.recipe.data)  # before what takes seconds is loaded
    from compactmtl.distributed.launch import launched
    from compactmtl.distributed.processes import is_first
    from compactmtl.train import dry_run, train

    if args.dry_run:
        unused = [f"--{key}" for key in ("resume", "overwrite", "name") if vars(args)[key]]
        if unused:
            print(f"note: {', '.join(unused)} has no effect: a dry run writes nothing", file=sys.stderr)
        print(describe(dry_run(resolved.recipe)))
        return 0
    with launched(resolved.recipe.train.device):
        finished = train(
            resolved,
            path,
            resume=args.resume,
            overwrite=args.overwrite,
            accept_changed_data=args.accept_changed_data,
        )
        if not is_first():
            return 0
    print(f"run: {finished.path}")
    dense = resolved.recipe.sparsity is None
    trust = trusted(args)
    following = (
        command("export", finished.path, *trust) if dense else command("compact", finished.path, *trust)
    )
    print(f"next: {following}")
    return 0


def describe(result: DryRun) -> str:
    """A dry run in lines for people."""
    samples = ", ".join(f"{split} {count}" for split, count in result.samples.items())
    batch = result.input[0]
    memory = (
        f"{_bytes(result.total_bytes)} (weights {_bytes(result.weight_bytes)}, gradients "
        f"{_bytes(result.gradient_bytes)}, optimizer {_bytes(result.optimizer_bytes)}, "
        f"activations {_bytes(result.activation_bytes)})"
    )
    parameters = f"{result.parameters:,}"
    if result.trained_parameters != result.parameters:
        parameters += f" ({result.trained_parameters:,} while training)"
    lines = [
        ("samples", samples),
        *(("data", line) for line in result.data),
        *(("layout", line) for line in result.layout),
        ("input", _shape(result.input))
        if len(result.inputs) == 1
        else ("inputs", ", ".join(f"{name} {_shape(one)}" for name, one in result.inputs.items())),
        *((f"output {name}", _shape(shape)) for name, shape in result.outputs.items()),
        *((f"loss {name}", f"{value:.4g}") for name, value in result.losses.items()),
        ("parameters", parameters),
        ("MACs", f"{result.macs:,} for one image"),
        ("memory", memory),
        ("step", f"{result.seconds:.3f} s ({batch / result.seconds:.0f} images/s)"),
        ("steps", f"{result.total_steps} ({result.steps_per_epoch} an epoch)"),
        *(
            [("pass 1", f"{result.diagonal_seconds:.3f} s a step, {result.diagonal_steps} steps")]
            if result.diagonal_steps
            else []
        ),
        ("training", f"about {_duration(3600 * result.hours)}, validation apart"),
        *_left(result),
        *_evaluations(result),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _left(result: DryRun) -> list[tuple[str, str]]:
    """What sparsity will leave, where its target says so."""
    notes = [("sparsity", note) for note in result.notes]
    if result.remaining is None:
        unknown = "unknown before training: a λ without a target does not say how much is removed"
        return [*notes, ("left", unknown)] if notes else []
    remaining = result.remaining
    return [
        *notes,
        ("MACs left", f"about {remaining.macs:,.0f} for one image ({remaining.macs / result.macs:.1%})"),
        (
            "parameters left",
            f"about {remaining.parameters:,.0f} ({remaining.parameters / result.parameters:.1%})",
        ),
        *_milliseconds_left(remaining),
        ("channels left", "an estimate from the weights before training"),
        *((f"  {name}", f"{kept} of {whole}") for name, (kept, whole) in remaining.channels.items()),
    ]


def _milliseconds_left(remaining: Foreseen) -> list[tuple[str, str]]:
    """What a latency budget's table says of the network that is left."""
    if remaining.milliseconds is None or remaining.whole_milliseconds is None:
        return []
    ratio = remaining.whole_milliseconds / remaining.milliseconds
    return [
        (
            "latency left",
            f"about {remaining.milliseconds:.3g} ms of {remaining.whole_milliseconds:.3g} ms ({ratio:.2f} times as fast)"
            f" on {remaining.measured_on}",
        )
    ]


def _evaluations(result: DryRun) -> list[tuple[str, str]]:
    """How each over-parameterized layer is evaluated, and what the other way would cost."""
    if not result.evaluated:
        return []
    chosen = plain = 0
    lines = []
    for one in result.evaluated:
        price = one.price
        whole = price.product + price.plain
        mine = whole if one.way == "contract" or price.sequence is None else price.sequence
        chosen, plain = chosen + mine, plain + price.plain
        sequence = "no sequence" if price.sequence is None else f"in sequence {_giga(price.sequence)}"
        text = f"{one.way}: product {_giga(price.product)} + {_giga(price.plain)}, {sequence}"
        lines.append((f"  {one.layer}", text))
    passes = f", {result.encoder_passes} encoder passes" if result.encoder_passes > 1 else ""
    summary = f"{_giga(chosen)} MACs forward for a batch in {len(lines)} layers, {_giga(plain)} plain{passes}"
    return [("factors", summary), *lines]


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.3g} G"


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in shape)


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
