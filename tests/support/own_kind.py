"""A kind of task of somebody's own: the module that docs/tasks.md shows."""

from __future__ import annotations

import re
from pathlib import Path

_DOCUMENT = Path(__file__).parents[2] / "docs" / "tasks.md"
_BLOCK = re.search(r"```python\n(# own_tasks\.py\n.*?)```", _DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
assert _BLOCK is not None
FAR = _BLOCK[1]
