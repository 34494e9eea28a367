"""Names that a key of a recipe takes: those of the files in a folder of the package, none of which is imported."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import AfterValidator
from pydantic_core import PydanticKnownError

from compactmtl.config.trust import is_class_name

PACKAGE = Path(__file__).parents[1]
CLASS = "package.module:Class"


@cache
def file_names(folder: str) -> tuple[str, ...]:
    """The modules of a folder such as "sparsity/penalties", in alphabetical order; those that begin with _ are none."""
    names = sorted(path.stem for path in (PACKAGE / folder).glob("*.py"))
    return tuple(name for name in names if not name.startswith("_"))


def one_of(folder: str, *, own_class: bool = False) -> AfterValidator:
    """A check that a value names a module of `folder`; with `own_class` it may be `package.module:Class` instead."""

    def known(name: str) -> str:
        if name not in file_names(folder) and not (own_class and is_class_name(name)):
            expected = [repr(one) for one in (*file_names(folder), *([CLASS] if own_class else []))]
            # The error of a Literal: messages list what was expected, and the nearest name.
            raise PydanticKnownError(
                "literal_error", {"expected": f"{', '.join(expected[:-1])} or {expected[-1]}"}
            )
        return name

    return AfterValidator(known)
