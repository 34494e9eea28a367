"""The whole road in one command: dense network, latency table, shrinking, surgery, export, verification, report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.fit.compose import Budget, Road, plan_road
    from compactmtl.fit.stages import fit
    from compactmtl.fit.summary import Outcome

# A public name's module is imported when the name is asked for.
_HOME = {
    "Budget": "compose",
    "Outcome": "summary",
    "Road": "compose",
    "fit": "stages",
    "plan_road": "compose",
}

__all__ = ["Budget", "Outcome", "Road", "fit", "plan_road"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
