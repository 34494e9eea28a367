"""Hold compactmtl's imports against two rules: they go only to packages on the left of PACKAGES, and in no circle.

python tools/check_imports.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "errors", "artifacts", "config", "distributed", "tasks", "data", "models", "graph", "overparam", "surgery", "sparsity",
    "balancing", "backends", "verify", "runs", "export", "latency", "loops", "train", "report", "sweep", "fit", "cli",
)  # fmt: skip
PACKAGE = "compactmtl"
# A run is read through `runs`: only packages that start a training import the package that does it.
TRAINING, TRAINERS = "train", ("train", "sweep", "fit", "cli")
# Entry points: __init__ loads public names from every package on demand, __main__ starts the command line.
DOORS = ("__init__", "__main__")


@dataclass(frozen=True)
class Import:
    """One import from one of the packages, at module level, in a function or for types alone."""

    path: Path
    line: int
    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.importer} imports {self.imported}"


def violations(root: Path) -> list[str]:
    """Every import under `root/compactmtl` that goes to the right, and every module outside the known packages."""
    package = root / PACKAGE
    faults = []
    for path in _modules(package):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] not in PACKAGES:
            faults.append(
                f"{path}: {parts[0]} is no package of compactmtl; the packages are {', '.join(PACKAGES)}"
            )
            continue
        for found in _imports(path, parts):
            if found.imported not in PACKAGES or PACKAGES.index(found.imported) > PACKAGES.index(parts[0]):
                faults.append(f"{found}, which is not on its left")
            elif found.imported == TRAINING and parts[0] not in TRAINERS:
                faults.append(f"{found}; a run is read through runs")
    return faults


def circles(root: Path) -> list[str]:
    """Every circle of modules under `root/compactmtl` that import each other, one line for each.

    Imports at module level count, those under TYPE_CHECKING included; an import in a function does not. Of modules
    that all reach each other, one shortest circle is shown.
    """
    package = root / PACKAGE
    paths = {_module_name(path, package): path for path in _modules(package)}
    imports = {name: _loaded_with(path, package, paths) for name, path in paths.items()}
    faults: list[str] = []
    shown: set[str] = set()
    for name in sorted(imports):
        circle = [] if name in shown else _shortest_circle(name, imports)
        if circle:
            shown |= {one for one in _reachable(name, imports) if name in _reachable(one, imports)}
            line = imports[name][circle[1]]
            faults.append(f"{paths[name]}:{line}: modules import each other: {' -> '.join(circle)}")
    return faults


def _modules(package: Path) -> list[Path]:
    """The files of the package but its doors."""
    paths = sorted(package.rglob("*.py"))
    return [path for path in paths if path.relative_to(package).with_suffix("").parts[0] not in DOORS]


def _module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join([PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def _loaded_with(path: Path, package: Path, modules: Mapping[str, Path]) -> dict[str, int]:
    """The modules of the package that a module imports at its top level, with the line of the import."""
    here = (PACKAGE, *path.relative_to(package).parts[:-1])
    itself = _module_name(path, package)
    lines: dict[str, int] = {}
    for node in _top_level(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        for name in _imported_names(node, here):
            # `from a.b import c` names a module a.b.c, or a value of a.b
            module = name if name in modules else name.rpartition(".")[0]
            if module in modules and module != itself:
                lines.setdefault(module, getattr(node, "lineno", 0))
    return lines


def _top_level(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below one that is not inside a function."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _top_level(child)


def _reachable(start: str, imports: Mapping[str, Mapping[str, int]]) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for name in imports[ahead.pop()]:
            if name not in seen:
                seen.add(name)
                ahead.append(name)
    return seen


def _shortest_circle(start: str, imports: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The modules on a shortest way from `start` back to itself; empty where there is none."""
    before: dict[str, str] = {}
    ahead = [start]
    for name in ahead:  # grows while it is walked
        for imported in sorted(imports[name]):
            if imported == start:
                way = [start, name]
                while way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1]
            if imported not in before:
                before[imported] = name
                ahead.append(imported)
    return []


def _imports(path: Path, parts: tuple[str, ...]) -> Iterator[Import]:
    # A module's package: for __init__ the folder itself, which is what relative imports start from.
    here = (PACKAGE, *parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        for name in _imported_names(node, here):
            names = name.split(".")
            if names[0] == PACKAGE and len(names) > 1 and not names[1].startswith("__"):
                yield Import(path, getattr(node, "lineno", 0), parts[0], names[1])


def _imported_names(node: ast.AST, here: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that a statement imports; `from compactmtl import x` gives compactmtl.x."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = here[: len(here) - node.level + 1] if node.level else ()
        base = ".".join([*start, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__", "find_spec"):
        texts = [word.value for word in node.args[:1] if isinstance(word, ast.Constant)]
        yield from (text for text in texts if isinstance(text, str))


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def main() -> int:
    """Print every fault; 1 if there is one."""
    root = Path(__file__).resolve().parents[1]
    faults = violations(root) + circles(root)
    print("\n".join(faults) or "imports go one way, and in no circle")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
