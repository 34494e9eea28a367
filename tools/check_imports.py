"""Hold the package's imports against the one direction they may go: only to rooms on the left of ROOMS.

python tools/check_imports.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOMS = (
    "errors", "artifacts", "config", "tasks", "data", "models", "graph", "overparam", "surgery", "sparsity", "balancing",
    "backends", "verify", "runs", "train", "export", "report", "sweep", "cli",
)  # fmt: skip
PACKAGE = "compactmtl"
# A run is read through `runs`: only rooms that start a training import the room that does it.
TRAINING, TRAINERS = "train", ("train", "sweep", "cli")
# Entry points: __init__ loads public names from every room on demand, __main__ starts the command line.
DOORS = ("__init__", "__main__")


@dataclass(frozen=True)
class Import:
    """One import of a room of the package, at module level, in a function or for types alone."""

    path: Path
    line: int
    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.importer} imports {self.imported}"


def violations(root: Path) -> list[str]:
    """Every import under `root/compactmtl` that goes to the right, and every module outside the known rooms."""
    package = root / PACKAGE
    faults = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] in DOORS:
            continue
        if parts[0] not in ROOMS:
            faults.append(f"{path}: {parts[0]} is no room of the package; the rooms are {', '.join(ROOMS)}")
            continue
        for found in _imports(path, parts):
            if found.imported not in ROOMS or ROOMS.index(found.imported) > ROOMS.index(parts[0]):
                faults.append(f"{found}, which is not on its left")
            elif found.imported == TRAINING and parts[0] not in TRAINERS:
                faults.append(f"{found}; a run is read through runs")
    return faults


def _imports(path: Path, parts: tuple[str, ...]) -> Iterator[Import]:
    # A module's package: for __init__ the folder itself, which is what relative imports start from.
    here = (PACKAGE, *parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        for name in _imported_names(node, here):
            room = name.split(".")
            if room[0] == PACKAGE and len(room) > 1 and not room[1].startswith("__"):
                yield Import(path, getattr(node, "lineno", 0), parts[0], room[1])


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
    faults = violations(Path(__file__).resolve().parents[1])
    print("\n".join(faults) or "imports go one way")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
