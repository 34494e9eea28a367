"""kit.py, put together from the modules that run on a device: one file, and no definition twice."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import compactmtl
from compactmtl.backends.device import DeviceRuntime
from compactmtl.export.kit import on_device

PACKAGE = compactmtl.__name__
PYTHON = (3, 8)  # the oldest that kit.py runs in: JetPack 5's
_MARK = re.compile(r" (Part of kit\.py|Also part of a device kit: .*)\.$")
HEADER = '''#!/usr/bin/env python3
"""Measure this kit's models on this machine: `python kit.py`, and `python kit.py --help`.

Needs Python {python} or later, numpy, and the runtime: {install}. Nothing is sent anywhere: what was found is written beside
this file. Put together by compactmtl {version} from its own modules; what each part is for stands above it.
"""
'''


def script(runtime: type[DeviceRuntime], install: str, program: ModuleType = on_device) -> str:
    """The source of kit.py for a runtime, which `install` brings to a machine; `program` is what it does there."""
    parts: dict[str, _Part] = {}
    for module in (runtime.__module__, program.__name__):
        _collect(module, parts)
    imports = sorted({line for part in parts.values() for line in part.imports}, key=_import_order)
    header = HEADER.format(python=".".join(map(str, PYTHON)), install=install, version=compactmtl.__version__)
    bodies = [f"# --- {part.title}\n\n{part.body.strip()}\n" for part in parts.values()]
    main = "main" if program is on_device else "main_of_table"
    call = f"{main}({runtime.__name__}, Path(__file__).resolve().parent)"
    end = f'if __name__ == "__main__":\n    sys.exit({call})\n'
    return "\n\n".join(
        [f"{header}\nfrom __future__ import annotations\n\n" + "\n".join(imports) + "\n", *bodies, end]
    )


class _Part:
    """A module as a part of kit.py: what it is for, what it imports from outside, and the rest."""

    def __init__(self, name: str) -> None:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        self.name = name
        source = Path(spec.origin).read_text(encoding="utf-8")
        tree = ast.parse(source, filename=spec.origin, feature_version=PYTHON)
        self.title = _MARK.sub("", (ast.get_docstring(tree) or "").splitlines()[0])
        self.needs: list[str] = []
        self.imports: list[str] = []
        dropped = set(range(1, (tree.body[0].end_lineno or 1) + 1))  # its docstring
        for node in tree.body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            dropped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                assert not any(alias.asname for alias in node.names), f"{name}: an import under another name"
                self.needs.append(str(node.module))
            elif not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
                self.imports += _lines(node)
        lines = source.splitlines(keepends=True)
        self.body = "".join(line for number, line in enumerate(lines, 1) if number not in dropped)
        self.defines = set(_defined(tree))


def _collect(name: str, parts: dict[str, _Part]) -> None:
    """The module and, before it, those of the project that it imports."""
    if name in parts:
        return
    part = _Part(name)
    for needed in part.needs:
        _collect(needed, parts)
    for other in parts.values():
        twice = other.defines & part.defines
        assert not twice, f"{other.name} and {name} both define {', '.join(sorted(twice))}"
    parts[name] = part


def _lines(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """One line a name, so that two modules may import the same."""
    for alias in node.names:
        name = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        yield f"import {name}" if isinstance(node, ast.Import) else f"from {node.module} import {name}"


def _import_order(line: str) -> tuple[bool, bool, str]:
    """The standard library's before numpy's, `import` before `from`."""
    return line.split()[1].split(".")[0] == "numpy", line.startswith("from"), line


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names that a module gives at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
