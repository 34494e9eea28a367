"""Models: timm encoders, heads, and the multi-task network made of them."""

from compactmtl.models.encoder import BuiltEncoder, build_encoder
from compactmtl.models.heads import FCNHead, LinearHead, build_head
from compactmtl.models.multitask import MultiTaskModel, build_model

__all__ = [
    "BuiltEncoder",
    "FCNHead",
    "LinearHead",
    "MultiTaskModel",
    "build_encoder",
    "build_head",
    "build_model",
]
