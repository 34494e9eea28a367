"""Models: encoders (timm, SegNet), heads, and the multi-task network made of them."""

from compactmtl.models.build import build_model
from compactmtl.models.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from compactmtl.models.encoder import build_encoder
from compactmtl.models.features import BuiltEncoder, FeatureMap
from compactmtl.models.heads import FCNHead, LinearHead, build_head
from compactmtl.models.mtan import MTANHead
from compactmtl.models.multitask import MultiTaskModel
from compactmtl.models.own import OwnModel
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
    "OwnModel",
    "SegNet",
    "build_encoder",
    "build_head",
    "build_model",
]
