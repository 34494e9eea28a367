"""Models: encoders (timm, SegNet), heads, and the multi-task network made of them."""

from compactmtl.models.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from compactmtl.models.encoder import BuiltEncoder, build_encoder
from compactmtl.models.features import FeatureMap
from compactmtl.models.heads import FCNHead, LinearHead, build_head
from compactmtl.models.mtan import MTANHead
from compactmtl.models.multitask import MultiTaskModel, build_model
from compactmtl.models.segnet import SegNet

__all__ = [
    "BuiltEncoder",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "FCNHead",
    "FeatureMap",
    "LinearHead",
    "MTANHead",
    "MultiTaskModel",
    "SegNet",
    "build_encoder",
    "build_head",
    "build_model",
]
