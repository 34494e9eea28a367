"""Sparsity in training loops: one object for a loop of one's own, which recipes, Lightning and Hugging Face share."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from compactmtl.loops.shrinking import Shrinking

if TYPE_CHECKING:
    from compactmtl.loops.lightning import LightningShrinking
    from compactmtl.loops.transformers import TransformersShrinking

# each needs the extra of its module's name, which nothing else loads
_HOME = {"LightningShrinking": "lightning", "TransformersShrinking": "transformers"}

__all__ = ["LightningShrinking", "Shrinking", "TransformersShrinking"]


def __getattr__(name: str) -> Any:
    """Load a callback, and the library that it is for, when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
