"""`compactmtl explain`: what a key of a recipe, target or sweep means."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path
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
PACKAGE = Path(__file__).parents[1]
# Where the options of `option_models` stand in a recipe, and the files that declare them.
_OPTIONS = {
    "data.options.": "data/*.py",
    "tasks.*.options.": "tasks/**/*.py",
    "balancing.options.": "balancing/**/*.py",
    "sparsity.penalty_options.": "sparsity/penalties/*.py",
    "model.encoder.options.": "models/segnet.py",
}
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
    options = option_names()
    if any(_may_be_option(word, known, options) for word in args.keys):
        known += option_keys()  # which takes seconds: they are declared beside what they are options of
    for number, word in enumerate(args.keys):
        found = matches(word, known, options)
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


def option_names() -> list[str]:
    """The dotted keys of `option_keys`, read from the text of the modules: nothing is imported for them."""
    names = []
    for prefix, pattern in _OPTIONS.items():
        for path in sorted(PACKAGE.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            if "Options(" in text:
                names += [f"{prefix}{field}" for field in _fields(ast.parse(text))]
    return list(dict.fromkeys(names))


def _fields(module: ast.Module) -> Iterator[str]:
    """The fields of a module's classes of options."""
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
            for one in node.body:
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                    yield one.target.id


def _may_be_option(word: str, known: list[Found], options: list[str]) -> bool:
    """Whether a word names all options of a section, or an option that is no key of a schema too."""
    last = word.rpartition(".")[2]
    names = {part for one in known for part in one.key.name.split(".")}
    is_option = last in {name.rpartition(".")[2] for name in options}
    return last.endswith("options") or (is_option and ("options" in word or word not in names))
