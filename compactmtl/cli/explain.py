"""`compactmtl explain`: what a key of a recipe, target or sweep means."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compactmtl.errors import OK

if TYPE_CHECKING:
    from pydantic import BaseModel

    from compactmtl.config.explain import Found

HELP = "say what a key of a recipe, target or sweep means"
EXAMPLE = """
compactmtl explain
compactmtl explain train.ema
compactmtl explain tasks.depth.loss
compactmtl explain target.latency data.options.noise
"""
MOST = 8  # keys that are told whole; of more the names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "keys",
        metavar="KEY",
        nargs="*",
        help="a dotted key such as data.size, or the end of one; without any, the sections are listed",
    )


def run(args: argparse.Namespace) -> int:
    """Print what each key means: its type, values, default, who reads it, and which recipes or targets set it."""
    from compactmtl.config.explain import explained, matches, overview

    known = list(schema_keys())
    if not args.keys:
        print("\n".join(overview(known)).rstrip())
        print("\n`compactmtl explain KEY` tells more of one; `compactmtl explain SECTION` lists its keys.")
        return OK
    if any(_may_be_option(word, known) for word in args.keys):
        known += option_keys()  # which takes seconds: they are declared beside what they are options of
    for number, word in enumerate(args.keys):
        found = matches(word, known)
        if number:
            print()
        if len(found) > MOST:
            print(f"{word} is the end of {len(found)} keys; name one of them:")
            print("\n".join(f"  {one.kind}.{one.key.name}" for one in found))
            continue
        print("\n\n".join("\n".join(explained(one, known)) for one in found))
        if len(found) > 1:
            print(f"{word} is the end of {len(found)} keys; all of them are above", file=sys.stderr)
    return OK


def schema_keys() -> Iterator[Found]:
    """Every key of the three schemas."""
    from compactmtl.backends.targets import target_schema
    from compactmtl.config.explain import Found
    from compactmtl.config.keys import keys
    from compactmtl.config.recipe import Recipe
    from compactmtl.config.sweep import SweepConfig

    yield from (Found("recipe", key) for key in keys(Recipe))
    yield from (Found("target", key) for key in keys(target_schema()))
    yield from (Found("sweep", key) for key in keys(SweepConfig))


def option_keys() -> Iterator[Found]:
    """Every option of a data set, kind of task, balancer, penalty and encoder that comes with the package."""
    from compactmtl.config.explain import Found
    from compactmtl.config.keys import keys

    for prefix, owner, model in option_models():
        yield from (Found("recipe", key, owner) for key in keys(model, prefix))


def option_models() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Where options stand in a recipe, whose they are, and their model."""
    from compactmtl.balancing.registry import balancer_class
    from compactmtl.config.registry import file_names
    from compactmtl.data.datasets import dataset_module
    from compactmtl.data.registry import DATASETS
    from compactmtl.models.segnet import SegNetOptions
    from compactmtl.sparsity.registry import penalty_class
    from compactmtl.tasks.registry import all_classes

    for name in DATASETS:
        yield "data.options.", f"the data set {name}", dataset_module(name).Options
    for name, kind in all_classes().items():
        yield "tasks.*.options.", f"tasks of kind {name}", kind.Options
    for name in file_names("balancing/methods"):
        yield "balancing.options.", f"the balancer {name}", balancer_class(name).Options
    for name in file_names("sparsity/penalties"):
        yield "sparsity.penalty_options.", f"the penalty {name}", penalty_class(name).Options
    yield "model.encoder.options.", "the encoder segnet", SegNetOptions


def _may_be_option(word: str, known: list[Found]) -> bool:
    """Whether a word names options, or is a single one that no schema has."""
    names = {part for one in known for part in one.key.name.split(".")}
    return "options" in word or ("." not in word and word not in names)
