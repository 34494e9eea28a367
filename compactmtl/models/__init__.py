"""Models: encoders (timm, SegNet), heads, and the multi-task network made of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.models.build import build_model
    from compactmtl.models.deeplab import DeepLabV3Head, DeepLabV3PlusHead
    from compactmtl.models.encoder import build_encoder
    from compactmtl.models.features import BuiltEncoder, FeatureMap
    from compactmtl.models.heads import FCNHead, LinearHead, build_head
    from compactmtl.models.mtan import MTANHead
    from compactmtl.models.multitask import MultiTaskModel
    from compactmtl.models.own import OwnModel
    from compactmtl.models.segnet import SegNet

# A public name's module is imported when the name is asked for.
_HOME = {
    "BuiltEncoder": "features",
    "DeepLabV3Head": "deeplab",
    "DeepLabV3PlusHead": "deeplab",
    "FCNHead": "heads",
    "FeatureMap": "features",
    "LinearHead": "heads",
    "MTANHead": "mtan",
    "MultiTaskModel": "multitask",
    "OwnModel": "own",
    "SegNet": "segnet",
    "build_encoder": "encoder",
    "build_head": "heads",
    "build_model": "build",
}

__all__ = [
    "BuiltEncoder",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "FCNHead",
    "FeatureMap",
    "LinearHead",
    "MTANHead",
    "MultiTaskModel",
    "OwnModel",
    "SegNet",
    "build_encoder",
    "build_head",
    "build_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
