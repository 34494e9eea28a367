"""Programs that run on devices are of Python 3.8, which JetPack 5 has: every file of `in_bundle`, and each backend's part."""

from __future__ import annotations

from pathlib import Path

import pytest

import compactmtl
from compactmtl.backends import all_backends
from tests.support.python38 import later_than_38

HOME = Path(compactmtl.__file__).parent
PROGRAMS = {
    path.relative_to(HOME).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((*HOME.glob("export/in_bundle/*.py"), *HOME.glob("backends/*/in_bundle*.py")))
}


def test_every_backend_that_opens_files_has_a_part() -> None:
    assert (
        len(PROGRAMS) >= 10 + sum(backend.opens_files for backend in all_backends()) - 1
    )  # RTX has TensorRT's


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_of_python_38(name: str) -> None:
    assert later_than_38(PROGRAMS[name]) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("zip(a, b, strict=True)", "zip(strict=)"),
        ("name.removeprefix('a')", "removeprefix"),
        ("from functools import cache", "cache"),
        ("isinstance(a, int | str)", "isinstance with |"),
        ("a = {**b} | c", "a union of dicts"),
        ("a |= {'b': 1}", "a union of dicts"),
        ("def f(a: list[int]): pass", "a generic type that is evaluated"),
        ("a[*b]", "a star in an index"),
    ],
)
def test_what_came_later_is_found(line: str, what: str) -> None:
    assert later_than_38(f"import sys\n{line}") == [f"line 2: {what}"]


def test_what_is_older_is_not_found() -> None:
    assert later_than_38("a[(*b, 1)]") == []
    assert later_than_38("from __future__ import annotations\ndef f(a: list[int]): pass") == []


@pytest.mark.parametrize("line", ["match a:\n  case 1: pass", "with (open(a) as b, open(c) as d): pass"])
def test_syntax_that_came_later_is_refused(line: str) -> None:
    with pytest.raises(SyntaxError):
        later_than_38(line)
