"""Train, compact, export and verify multi-task vision networks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.backends import load_target
    from compactmtl.balancing import DummyGradientNorm, balancer
    from compactmtl.config import load_recipe
    from compactmtl.data import load_dataset
    from compactmtl.export import export_bundle, export_onnx
    from compactmtl.graph import ChannelGraph
    from compactmtl.latency import latency_table
    from compactmtl.loops import Shrinking
    from compactmtl.models import build_model
    from compactmtl.overparam import contract, overparameterize
    from compactmtl.sparsity import GroupLasso, ProximalStep, channel_groups
    from compactmtl.surgery import apply_plan, compact
    from compactmtl.verify import check_parity, measure_latency

__version__ = "0.1.0"

_HOME = {
    "ChannelGraph": "graph",
    "DummyGradientNorm": "balancing",
    "GroupLasso": "sparsity",
    "ProximalStep": "sparsity",
    "Shrinking": "loops",
    "apply_plan": "surgery",
    "balancer": "balancing",
    "build_model": "models",
    "channel_groups": "sparsity",
    "check_parity": "verify",
    "compact": "surgery",
    "contract": "overparam",
    "export_bundle": "export",
    "export_onnx": "export",
    "latency_table": "latency",
    "load_dataset": "data",
    "load_recipe": "config",
    "load_target": "backends",
    "measure_latency": "verify",
    "overparameterize": "overparam",
}

__all__ = [
    "ChannelGraph",
    "DummyGradientNorm",
    "GroupLasso",
    "ProximalStep",
    "Shrinking",
    "__version__",
    "apply_plan",
    "balancer",
    "build_model",
    "channel_groups",
    "check_parity",
    "compact",
    "contract",
    "export_bundle",
    "export_onnx",
    "latency_table",
    "load_dataset",
    "load_recipe",
    "load_target",
    "measure_latency",
    "overparameterize",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its package when it is first asked for, so that importing the package stays light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
