"""Export: ONNX files, bundles that say what they are, and the verification of a run on its targets."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.export.bundle import Bundle
    from compactmtl.export.module import export_bundle
    from compactmtl.export.onnx import export_onnx
    from compactmtl.export.predict import Predictor
    from compactmtl.export.run import export_run

__all__ = ["Bundle", "Predictor", "export_bundle", "export_onnx", "export_run"]

# Exporting a foreign module needs neither data sets nor training, and a bundle no torch: each loads when asked for.
_HOME = {
    "Bundle": "bundle",
    "Predictor": "predict",
    "export_bundle": "module",
    "export_onnx": "onnx",
    "export_run": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
