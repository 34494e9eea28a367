"""The kinds of task by name: the files of `compactmtl.tasks.kinds`, of which none is imported to list them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticKnownError

from compactmtl.config.trust import is_class_name

FOLDER = Path(__file__).parents[1] / "tasks" / "kinds"
CLASS_NAME = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


@cache
def task_kinds() -> tuple[str, ...]:
    """The kinds that the package has, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")))


def _known(kind: str) -> str:
    if not is_class_name(kind) and kind not in task_kinds():
        expected = [repr(name) for name in (*task_kinds(), "package.module:Class")]
        raise PydanticKnownError(
            "literal_error", {"expected": f"{', '.join(expected[:-1])} or {expected[-1]}"}
        )
    return kind


TaskKind = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"anyOf": [{"enum": list(task_kinds())}, {"type": "string", "pattern": CLASS_NAME}]}),
]
