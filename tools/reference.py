"""Write the reference pages of docs/reference from the code: keys, command line, Python names, bundled lists.

python tools/reference.py            # write the pages
python tools/reference.py --check    # exit 1 where a page is not what the code says
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import compactmtl
from compactmtl.backends.targets import target_schema
from compactmtl.cli.main import VERBS, parser_of
from compactmtl.config.keys import Key, keys
from compactmtl.config.recipe import Recipe
from compactmtl.config.sweep import SweepConfig
from compactmtl.config.target import Target
from compactmtl.errors import EXIT_CODES
from tools.reference_bundle import bundle_page
from tools.reference_lists import lists

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Written by tools/reference.py from the code: edit the code, then run `make docs`. -->\n"
# Packages whose names the Python page documents, in the order in which a script meets them.
PACKAGES = (
    "config", "data", "models", "tasks", "overparam", "graph", "sparsity", "latency", "loops", "balancing", "surgery",
    "export", "backends", "verify",
)  # fmt: skip
SCALARS = "A scalar is a text, a number, `true`, `false` or `null`."


def pages() -> dict[str, Callable[[], str]]:
    """Every generated page by its file name."""
    return {
        "recipe.md": lambda: _schema_page(
            "Recipe keys",
            "A recipe is a YAML file that determines a training run. Keys that it leaves out have their defaults. "
            "`compactmtl recipes show RECIPE --resolved` shows every value of a recipe and where it comes from.",
            list(keys(Recipe)),
        ),
        "target.md": lambda: _schema_page(
            "Target keys",
            "A target is a YAML file that says where a model runs and which bounds it must meet. "
            "`compactmtl targets show TARGET --resolved` shows every value of a target and where it comes from.",
            _general_first(list(keys(target_schema()))),
        ),
        "sweep.md": lambda: _schema_page(
            "Sweep keys",
            "A sweep is a YAML file that lists recipes to train over several seeds. `compactmtl sweep` trains them.",
            list(keys(SweepConfig)),
        ),
        "bundle.md": bundle_page,
        "cli.md": _cli_page,
        "python.md": _python_page,
        "lists.md": lambda: "\n".join(lists()),
    }


# -- keys --------------------------------------------------------------------------------------------------------------


def _schema_page(title: str, intro: str, every: list[Key]) -> str:
    """One table for each section; the keys of the top level first."""
    lines = [f"# {title}", "", intro, "", SCALARS, ""]
    lines += _key_table([key for key in every if _parent(key, every) == ""])
    for section in (key for key in every if key.section):
        own = [key for key in every if _parent(key, every) == section.name]
        lines += [f"## `{section.name}`", "", section.description, "", *_key_table(own)]
    return "\n".join(lines)


def _general_first(every: list[Key]) -> list[Key]:
    """The keys of every target in their own order, then those that one backend reads."""
    order = {name: place for place, name in enumerate(Target.model_fields)}
    return sorted(every, key=lambda key: order.get(key.name.partition(".")[0], len(order)))


def _parent(key: Key, every: list[Key]) -> str:
    """The section that a key stands in; empty at the top level."""
    sections = [one.name for one in every if one.section and key.name.startswith(f"{one.name}.")]
    return max(sections, key=len, default="")


def _key_table(rows: list[Key]) -> Iterator[str]:
    yield from ("| key | type | default | meaning |", "| --- | --- | --- | --- |")
    for key in rows:
        default = "required" if key.default is None else f"`{key.default}`" if key.default else ""
        yield f"| `{key.name}` | {_cell(key.type)} | {_cell(default)} | {_cell(key.description)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# -- command line ------------------------------------------------------------------------------------------------------


def _cli_page() -> str:
    lines = [
        "# Command line",
        "",
        "`compactmtl COMMAND --help` shows the same text. Options and positional arguments may stand in any order; "
        "`key=value` words override values of a recipe or target.",
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "| ---: | --- |",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()),
        "",
    ]
    for verb in VERBS:
        lines += _verb(verb)
    return "\n".join(lines)


def _verb(name: str) -> Iterator[str]:
    module = importlib.import_module(f"compactmtl.cli.{name}")
    parser = parser_of(name)
    yield from (f"## compactmtl {name}", "", _sentence(module.HELP), "")
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not subparsers:
        yield from _usage(parser)
    for action in subparsers:
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for word, parser_of_word in action.choices.items():
            yield from (f"### compactmtl {name} {word}", "", _sentence(helps[word]), "")
            yield from _usage(parser_of_word)
    yield from ("Example:", "", "```sh", module.EXAMPLE.strip(), "```", "")
    if note := getattr(module, "NOTE", ""):
        yield from (note, "")


def _usage(parser: argparse.ArgumentParser) -> Iterator[str]:
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    words = [_shape(action) for action in actions if not action.option_strings]
    options = [action for action in actions if action.option_strings]
    needed = [f"{action.option_strings[-1]} {_value(action)}" for action in options if action.required]
    yield from (
        "```text",
        " ".join([parser.prog, *words, *needed, *(["[options]"] if options else [])]),
        "```",
        "",
    )
    if actions:
        yield from ("| argument | meaning |", "| --- | --- |")
    for action in actions:
        name = (
            f"{', '.join(action.option_strings)} {_value(action)}"
            if action.option_strings
            else _value(action)
        )
        text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
        yield f"| `{name.strip()}` | {_cell(_sentence(text))} |"
    yield ""


def _shape(action: argparse.Action) -> str:
    """A positional as a usage line shows it."""
    name = _value(action)
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [{name} ...]"}.get(str(action.nargs), name)


def _value(action: argparse.Action) -> str:
    """The placeholder of an argument's value; empty for a switch."""
    if action.option_strings and action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    name = action.dest.upper() if action.option_strings else action.dest
    return f"{name} ..." if action.option_strings and action.nargs in ("+", "*") else name


def _sentence(text: str) -> str:
    """A help text with a capital letter and a period."""
    text = text.strip()
    if not text:
        return text
    first = text[0].upper() + text[1:] if text.split()[0].rstrip(",;:").isalpha() else text
    return first if first.endswith((".", ":", "?")) else f"{first}."


# -- Python ------------------------------------------------------------------------------------------------------------


def _python_page() -> str:
    """For each package a table of its public names, then a directive of mkdocstrings for each of them."""
    homes = compactmtl._HOME
    lines = [
        "# Python API",
        "",
        f"**Stable** names can also be imported from `compactmtl` itself ({', '.join(f'`{name}`' for name in sorted(homes))}) "
        "and keep their meaning within a major version. The others are public names of their package and may change "
        "between minor versions.",
        "",
    ]
    for package in PACKAGES:
        module = importlib.import_module(f"compactmtl.{package}")
        sources = _sources(package)
        stable = [name for name in module.__all__ if homes.get(name) == package]
        names = [*stable, *(name for name in module.__all__ if name not in stable)]
        lines += [f"## compactmtl.{package}", "", (module.__doc__ or "").strip().splitlines()[0], ""]
        lines += [f"`from compactmtl.{package} import …`", "", "| name | what |", "| --- | --- |"]
        for name in names:
            mark = " **stable**" if name in stable else ""
            lines.append(f"| `{name}`{mark} | {_cell(_summary(getattr(module, name)))} |")
        lines.append("")
        lines += [f"::: {sources.get(name, module.__name__)}.{name}\n" for name in names]
    return "\n".join(lines)


def _summary(value: object) -> str:
    """The first paragraph of a docstring; nothing of values, whose docstring is their type's."""
    documented = inspect.isclass(value) or inspect.isfunction(value)
    return inspect.cleandoc(value.__doc__ or "").split("\n\n")[0] if documented else ""


def _sources(package: str) -> dict[str, str]:
    """The module that each name of a package's __init__ is imported from."""
    whole = f"compactmtl.{package}"
    late = getattr(
        importlib.import_module(whole), "_HOME", {}
    )  # of packages that import their names when asked
    tree = ast.parse((ROOT / "compactmtl" / package / "__init__.py").read_text(encoding="utf-8"))
    sources = {name: f"{whole}.{module}" for name, module in late.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            sources |= {alias.asname or alias.name: node.module for alias in node.names}
    return sources


# -- the command -------------------------------------------------------------------------------------------------------


def stale(folder: Path = FOLDER) -> list[str]:
    """The generated pages that are not what the code says."""
    return [
        name
        for name, make in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != NOTE + make()
    ]


def main() -> int:
    """Write the pages, or check them; 1 where --check finds one that is out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a page is out of date"
    )
    if parser.parse_args().check:
        names = stale()
        print(
            "\n".join(f"docs/reference/{name} is out of date: run `make docs`" for name in names)
            or "up to date"
        )
        return int(bool(names))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in pages().items():
        (FOLDER / name).write_text(NOTE + make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
