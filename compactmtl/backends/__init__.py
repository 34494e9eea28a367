"""Ways of running an exported model, behind one protocol: each backend is a folder with an `entry.py`."""

from __future__ import annotations

from compactmtl.backends.align import Align, align_of, surgery_align
from compactmtl.backends.base import (
    Availability,
    Backend,
    BackendOptions,
    Description,
    LayerTime,
    Runner,
    TensorInfo,
)
from compactmtl.backends.registry import (
    all_backends,
    backend_names,
    get_backend,
    open_graph,
    reference_target,
)
from compactmtl.backends.targets import (
    ResolvedTarget,
    checked_target,
    load_target,
    resolve_target,
    target_schema,
)

__all__ = [
    "Align",
    "Availability",
    "Backend",
    "BackendOptions",
    "Description",
    "LayerTime",
    "ResolvedTarget",
    "Runner",
    "TensorInfo",
    "align_of",
    "all_backends",
    "backend_names",
    "checked_target",
    "get_backend",
    "load_target",
    "open_graph",
    "reference_target",
    "resolve_target",
    "surgery_align",
    "target_schema",
]
