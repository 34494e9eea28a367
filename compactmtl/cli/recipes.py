"""`compactmtl recipes`: list, show, copy and check training recipes."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.cli.listing import print_entries, print_file, print_resolved
from compactmtl.cli.parser import add_trust
from compactmtl.errors import OK, CompactError, ConfigError, command

if TYPE_CHECKING:
    from compactmtl.config.recipe import Recipe

HELP = "list, show, copy and check training recipes"
NOTE = """\
The keys of a recipe override those of the recipes that it `extends`; key=value words override
both. {} or null in place of a mapping clears inherited keys, as in data.options={}. A relative
path is relative to the recipe's file; on the command line, to the working folder."""
EXAMPLE = """
compactmtl recipes list
compactmtl recipes show utkface/compact --resolved train.epochs=3
compactmtl recipes copy utkface/compact mine.yaml
compactmtl recipes check mine.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="list every recipe by name")
    show = actions.add_parser("show", help="show a recipe as it is written, or with every value resolved")
    show.add_argument("recipe", metavar="RECIPE", help="recipe by name or path")
    show.add_argument("overrides", metavar="key=value", nargs="*", help="values that override the recipe")
    show.add_argument("--resolved", action="store_true", help="show every value and where it comes from")
    copy = actions.add_parser("copy", help="copy a recipe, to change the copy")
    copy.add_argument("recipe", metavar="RECIPE", help="recipe by name or path")
    copy.add_argument(
        "out",
        metavar="FILE",
        nargs="?",
        type=Path,
        help="file or folder of the copy (default: the recipe's name in the working folder)",
    )
    copy.add_argument("--resolved", action="store_true", help="write out every value, without `extends`")
    copy.add_argument("--force", action="store_true", help="overwrite FILE")
    check = actions.add_parser(
        "check",
        help="check keys, types, targets, encoder, data set and its options; for scenes also the tasks' targets",
    )
    check.add_argument("recipes", metavar="RECIPE", nargs="*", help="recipes by name or path (default: all)")
    add_trust(check)


def run(args: argparse.Namespace) -> int:
    """Run one subcommand."""
    match args.action:
        case "list":
            print_entries("recipe")
        case "show":
            _show(args)
        case "copy":
            _copy(args)
        case _:
            _check(args.recipes)
    return OK


def _show(args: argparse.Namespace) -> None:
    from compactmtl.config.load import resolve_recipe

    resolved = resolve_recipe(args.recipe, args.overrides)
    if args.resolved or args.overrides:
        print_resolved(resolved.recipe, resolved.origins)
    else:
        print_file(resolved.path)


def _copy(args: argparse.Namespace) -> None:
    from compactmtl.config.load import dump_recipe, resolve_recipe

    resolved = resolve_recipe(args.recipe)
    out: Path = args.out or Path()
    if out.is_dir():
        out /= f"{Path(resolved.name).name}.yaml"
    if out.exists() and not args.force:
        raise ConfigError(f"{out} exists", "choose another file, or overwrite it with --force")
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.resolved:
        out.write_text(f"# {resolved.name}, every value written out\n{dump_recipe(resolved.recipe)}", "utf-8")
    else:
        _refuse_relative_extends(resolved.path)
        shutil.copyfile(resolved.path, out)
    print(f"wrote {out}; check it with `{command('recipes', 'check', out)}`")


def _refuse_relative_extends(path: Path) -> None:
    from compactmtl.config.merge import parents
    from compactmtl.config.yaml import read_yaml

    for parent in parents(read_yaml(path)):
        if str(parent.value).endswith((".yaml", ".yml")):
            raise ConfigError(
                f"{parent.place}: extends {parent.value}, a relative path that is wrong elsewhere",
                "copy the recipe with --resolved",
            )


def _check(names: list[str]) -> None:
    from compactmtl.config.load import resolve_recipe
    from compactmtl.config.lookup import names as known_names

    checked = names or list(known_names("recipe"))
    if not checked:
        raise ConfigError("there are no recipes to check", "name one, or run in a folder that has recipes/")
    faults: dict[str, CompactError] = {}
    for name in checked:
        try:
            _check_references(resolve_recipe(name).recipe)
        except ConfigError as error:
            print(f"fault  {name}")
            faults[name] = error
        else:
            print(f"ok     {name}")
    if faults:
        hints = dict.fromkeys(error.hint for error in faults.values() if error.hint)
        messages = [f"{name}: {error.message}" for name, error in faults.items()]
        raise ConfigError("\n".join(messages), "\n".join(hints))


def _check_references(recipe: Recipe) -> None:
    """What a recipe names beyond itself: targets, data set, task kinds, encoder, penalty, balancing, and options."""
    from compactmtl.backends import load_target
    from compactmtl.balancing.options import method_options
    from compactmtl.balancing.registry import balancer_class
    from compactmtl.config import validate_options
    from compactmtl.data import load_dataset
    from compactmtl.data.datasets import dataset_module
    from compactmtl.sparsity.registry import penalty_options
    from compactmtl.tasks import build_tasks, task_class

    for target in recipe.targets:
        load_target(target)
    for one in recipe.data.sources:
        validate_options(dataset_module(one.name).Options, one.options, f"data.sources: {one.called}.options")
    if not recipe.data.sources:
        validate_options(dataset_module(recipe.data.name).Options, recipe.data.options, "data.options")
    _check_network(recipe)
    for name, task in recipe.tasks.items():
        task_class(task.kind, f"tasks.{name}.kind")
    if recipe.sparsity is not None:
        penalty_options(recipe.sparsity)
        section = recipe.sparsity.target
        if section is not None and section.latency is not None and section.latency.target is not None:
            load_target(section.latency.target)
    balancing = recipe.balancing
    method_options(balancing.name, balancer_class(balancing.name).Options, recipe.tasks, balancing.options)
    if recipe.data.name == "scenes":  # what other data sets offer is only known from their files
        build_tasks(recipe.tasks, load_dataset(recipe.data, "train").specs)


def _check_network(recipe: Recipe) -> None:
    """The encoder's name, or that code of the user's own can be imported and takes its options."""
    from compactmtl.config.trust import is_class_name
    from compactmtl.models.encoder import check_encoder_name
    from compactmtl.models.user_code import constructor

    model, encoder = recipe.model, recipe.model.encoder
    if model.factory is not None:
        constructor(model.factory, "model.factory", "model.options", model.options)
    elif is_class_name(encoder.name):
        constructor(encoder.name, "model.encoder.name", "model.encoder.options", encoder.options)
    else:
        check_encoder_name(encoder.name)
    for name, task in recipe.tasks.items():
        if task.head is not None and is_class_name(task.head.kind):
            key, given = f"tasks.{name}.head", {"in_channels": 1, "channels": 1}
            constructor(task.head.kind, f"{key}.kind", f"{key}.options", task.head.options, given)
