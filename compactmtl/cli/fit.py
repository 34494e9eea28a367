"""`compactmtl fit`: a network within a budget, from a recipe or a module of one's own to a verified bundle."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from compactmtl.cli.parser import add_device, add_trust

if TYPE_CHECKING:
    from compactmtl.fit import Budget, Outcome, Road

HELP = "make a network that fits a budget: train, shrink, compact, export, verify, report"
EXAMPLE = """\
compactmtl fit utkface/dense data.root=/data --target onnxruntime-cpu --latency-ms 5
compactmtl fit utkface/dense data.root=/data --speedup 2
compactmtl fit my_module:build --recipe base.yaml --macs-reduction 0.5
compactmtl fit my_module:build data.name=folder data.root=birds tasks.species.kind=classification --latency-ms 5"""
NOTE = """\
my_module:build is a function or class that returns the whole network (an nn.Module whose forward
gives a dict of tasks to outputs). What to train it on comes from key=value words, from --recipe,
or from the module itself: RECIPE, a mapping or the path of a recipe, or recipe(), which returns that.

The same command continues an interrupted fit. A finished stage is not run again."""

# The options that give a budget, each with the numbers between which it lies.
_BOUNDS = {"latency-ms": (0.0, math.inf), "speedup": (1.0, math.inf), "macs-reduction": (0.0, 1.0)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "subject", metavar="RECIPE_OR_MODULE", help="a recipe by name or path, or package.module:build"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values that override the recipe")
    parser.add_argument("--recipe", metavar="NAME", help="recipe by name or path for a module's network")
    parser.add_argument(
        "--target", metavar="NAME", help="target by name or path (default: the recipe's first)"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--latency-ms",
        type=float,
        metavar="MS",
        help="most milliseconds on the target, as `export` measures them",
    )
    budget.add_argument(
        "--speedup", type=float, metavar="X", help="times as fast on the target as the network before"
    )
    budget.add_argument(
        "--macs-reduction",
        type=float,
        metavar="SHARE",
        help="share of the network's MACs to remove, such as 0.5",
    )
    dense = parser.add_mutually_exclusive_group()
    dense.add_argument(
        "--baseline",
        metavar="RUN",
        help="dense run to compare with; none is trained, and shrinking starts as the recipe says",
    )
    dense.add_argument(
        "--no-dense", action="store_true", help="train no dense network first, and compare with none"
    )
    parser.add_argument("--out", metavar="DIR", default="runs", help="folder of runs (default: runs)")
    parser.add_argument("--name", help="folder of the fit in it (default: the recipe's or module's name)")
    parser.add_argument(
        "--overwrite", action="store_true", help="start over, and replace the runs of this fit"
    )
    add_device(parser, "evaluate the torch models, which the artifact is held against,")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Walk every stage that is not done; a failed gate still gets its report, then fails the command."""
    from contextlib import nullcontext

    _check_budget(args)  # before anything heavy is loaded
    from compactmtl.config.trust import is_class_name, naming

    # A module that is named on the command line may be imported: naming it there is the user's word.
    with naming(args.subject) if is_class_name(args.subject) else nullcontext():
        outcome = _fit(args)
    outcome.raise_failed()
    return 0


def _fit(args: argparse.Namespace) -> Outcome:
    from compactmtl.backends.torch.device import find_device
    from compactmtl.config.paths import is_here
    from compactmtl.config.words import naming
    from compactmtl.data.datasets import check_root
    from compactmtl.errors import command
    from compactmtl.fit.compose import plan_road

    device = find_device(args.device, "--device")
    road = plan_road(
        args.subject,
        args.overrides,
        base=args.recipe,
        budget=_budget(args),
        target=args.target,
        out=args.out,
        name=args.name,
        dense=args.baseline is None and not args.no_dense,
    )
    check_root(road.plain.recipe.data)  # before what takes seconds is loaded
    from compactmtl.fit import fit
    from compactmtl.runs import Run

    baseline = Run.open(args.baseline, list(filter(is_here, args.overrides))) if args.baseline else None
    with naming(_as_given(args, road)):
        outcome = fit(
            road,
            baseline=baseline,
            overwrite=args.overwrite,
            device=device,
            say=lambda line: print(line, flush=True),
        )
    print(f"\n{args.subject} for {road.target_name}")
    print("\n".join(f"  {line}" for line in outcome.lines()))
    if outcome.passed:
        inputs = outcome.road.shrunk.recipe.data.inputs
        first, *others = [f"{name}=FILE" for name in inputs or ()] or ["IMAGE"]
        print(f"next: {command('predict', outcome.bundle, first, *others)}")
    return outcome


def _as_given(args: argparse.Namespace, road: Road) -> Callable[[str], str]:
    """What a key of the recipe is called here: of a budget that an option gave, that option."""
    option = next((f"--{name}" for name in _BOUNDS if vars(args)[name.replace("-", "_")] is not None), None)
    recipe = road.shrunk.recipe
    section = "" if recipe.sparsity is None else recipe.sparsity.section
    return lambda key: option if option and key == f"sparsity.{section}.{road.reduction.key}" else key


def _check_budget(args: argparse.Namespace) -> None:
    """Raise ConfigError for a number that is no budget."""
    from compactmtl.errors import ConfigError

    for measure, (low, high) in _BOUNDS.items():
        amount = vars(args)[measure.replace("-", "_")]
        if amount is not None and not low < amount < high:
            between = f"above {low:g}" + (f" and below {high:g}" if math.isfinite(high) else "")
            raise ConfigError(
                f"--{measure} {amount:g}: expected a number {between}", "see `compactmtl fit --help`"
            )


def _budget(args: argparse.Namespace) -> Budget | None:
    """The one that is given."""
    from compactmtl.fit import Budget

    if args.latency_ms is not None:
        return Budget("latency-ms", args.latency_ms)
    if args.speedup is not None:
        return Budget("speedup", args.speedup)
    return None if args.macs_reduction is None else Budget("macs-reduction", args.macs_reduction)
