"""What a program for Python 3.8 must not hold: its syntax, and what later libraries have that this project uses elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator

PYTHON = (3, 8)
# Names that 3.8's standard library lacks.
LATER = {
    "removeprefix", "removesuffix", "file_digest", "is_relative_to", "hexdigest_file", "pairwise", "batched",
    "readlink", "hardlink_to", "with_stem", "bit_count", "UTC", "TypeAlias", "Self", "StrEnum", "get_flattened_data",
    "to_thread", "cache", "randbytes", "lcm", "ExceptionGroup", "add_note", "NoneType", "EllipsisType", "tomllib",
}  # fmt: skip
GENERIC = {"list", "dict", "tuple", "set", "frozenset", "type"}  # whose `list[int]` 3.8 does not evaluate


def later_than_38(source: str) -> list[str]:
    """What 3.8 would refuse or lack, each with its line. Raises SyntaxError for its syntax."""
    tree = ast.parse(source, feature_version=PYTHON)
    postponed = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    found = [*_found(tree, postponed), *_starred(tree, source)]
    return sorted({f"line {line}: {what}" for line, what in found})


def _found(tree: ast.AST, postponed: bool) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LATER:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, one.name) for one in node.names if one.name in LATER)
        elif isinstance(node, ast.Call) and any(keyword.arg == "strict" for keyword in node.keywords):
            if getattr(node.func, "id", "") in ("zip", "map"):
                yield node.lineno, "zip(strict=)"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            if isinstance(node.args[1], ast.BinOp):
                yield node.lineno, "isinstance with |"
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.BitOr):
            sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
            if any(isinstance(side, ast.Dict | ast.DictComp) for side in sides):
                yield node.lineno, "a union of dicts"
        elif isinstance(node, ast.Subscript) and not postponed and getattr(node.value, "id", "") in GENERIC:
            yield node.lineno, "a generic type that is evaluated"


def _starred(tree: ast.AST, source: str) -> Iterator[tuple[int, str]]:
    """Indices such as `a[*b]`, which `ast.parse` takes whatever the version; `a[(*b,)]` is older."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
            bare = not (ast.get_source_segment(source, node.slice) or "").startswith("(")
            if bare and any(isinstance(one, ast.Starred) for one in node.slice.elts):
                yield node.lineno, "a star in an index"
