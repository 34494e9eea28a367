"""Networks of the surgery bench that come from other packages: Hugging Face, segmentation-models-pytorch, Ultralytics, MONAI.

Their packages are for the bench alone. Networks are built from configurations, with random weights and in small sizes of each family.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

PACKAGES = ("transformers", "segmentation_models_pytorch", "ultralytics", "monai")
CLASSES = 21  # of every network here, see `OUTPUTS` of `surgery_zoo`
_HIDDEN = {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 3}
_SIDE = {"image_size": 96, "patch_size": 16}
# name: class and settings of its configuration
_HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", {**_HIDDEN, **_SIDE}),
    "deit": ("DeiTForImageClassification", {**_HIDDEN, **_SIDE}),
    "beit": ("BeitForImageClassification", {**_HIDDEN, **_SIDE, "use_relative_position_bias": True}),
    "data2vec": ("Data2VecVisionForImageClassification", {**_HIDDEN, **_SIDE}),
    "dinov2": ("Dinov2ForImageClassification", {**_HIDDEN, **_SIDE, "use_swiglu_ffn": True}),
    "swin": ("SwinForImageClassification", {"image_size": 224, "embed_dim": 48, "depths": [2, 2, 2, 2]}),
    "swinv2": (
        "Swinv2ForImageClassification",
        {"image_size": 128, "window_size": 4, "embed_dim": 48, "depths": [1, 2, 2, 1]},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 4, 2]},
    ),
    "convnextv2": (
        "ConvNextV2ForImageClassification",
        {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 4, 2]},
    ),
    "resnet": ("ResNetForImageClassification", {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}),
    "regnet": (
        "RegNetForImageClassification",
        {"hidden_sizes": [32, 64, 160, 384], "depths": [1, 1, 4, 2], "groups_width": 16},
    ),
    "bit": ("BitForImageClassification", {"hidden_sizes": [128, 256, 512, 1024], "depths": [1, 1, 2, 1]}),
    "poolformer": ("PoolFormerForImageClassification", {}),
    "cvt": ("CvtForImageClassification", {}),
    "pvt": ("PvtForImageClassification", {"image_size": 96}),
    "pvtv2": ("PvtV2ForImageClassification", {"image_size": 96}),
    "levit": ("LevitForImageClassification", {"image_size": 224}),
    "efficientnet": (
        "EfficientNetForImageClassification",
        {"image_size": 96, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    ),
    "mobilenetv1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.5}),
    "mobilenetv2": ("MobileNetV2ForImageClassification", {}),
    "mobilevit": ("MobileViTForImageClassification", {"image_size": 96}),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"image_size": 96, "width_multiplier": 0.5}),
    "swiftformer": ("SwiftFormerForImageClassification", {}),
    "focalnet": (
        "FocalNetForImageClassification",
        {"image_size": 96, "embed_dim": 48, "depths": [1, 1, 2, 1]},
    ),
    "segformer": ("SegformerForSemanticSegmentation", {}),
    "mobilevit-deeplab": ("MobileViTForSemanticSegmentation", {"image_size": 96}),
    "glpn": ("GLPNForDepthEstimation", {}),
    "dpt": (
        "DPTForSemanticSegmentation",
        {
            **_HIDDEN,
            **_SIDE,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [32, 64, 96, 96],
            "fusion_hidden_size": 64,
        },
    ),
}
_SMP = {
    "unet": ("Unet", "resnet18"),
    "unetplusplus": ("UnetPlusPlus", "resnet18"),
    "linknet": ("Linknet", "resnet18"),
    "fpn": ("FPN", "mobilenet_v2"),
    "pspnet": ("PSPNet", "resnet18"),
    "pan": ("PAN", "resnet18"),
    "deeplabv3plus": ("DeepLabV3Plus", "mobilenet_v2"),
    "manet": ("MAnet", "resnet18"),
    "upernet": ("UPerNet", "resnet18"),
    "segformer": ("Segformer", "mit_b0"),
}
_ULTRALYTICS = ("yolov5n", "yolov8n", "yolo11n", "yolov8n-seg", "yolov9t", "yolo12n")
_MONAI: dict[str, dict[str, Any]] = {
    "UNet": {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2},
    "BasicUNet": {"features": (16, 16, 32, 64, 128, 16)},
    "BasicUNetPlusPlus": {"features": (16, 16, 32, 64, 128, 16)},
    "AttentionUnet": {"channels": (16, 32, 64), "strides": (2, 2)},
    "SegResNet": {"init_filters": 16},
    "DynUNet": {
        "kernel_size": [3, 3, 3, 3],
        "strides": [1, 2, 2, 2],
        "upsample_kernel_size": [2, 2, 2],
        "filters": [16, 32, 64, 128],
    },
    "UNETR": {"img_size": 96, "feature_size": 8, "hidden_size": 96, "mlp_dim": 192, "num_heads": 4},
    "SwinUNETR": {"feature_size": 12},
    "DenseNet121": {},
    "SEResNet50": {},
}

FOREIGN = (
    *(f"hf:{name}" for name in _HUGGING_FACE),
    *(f"smp:{name}" for name in _SMP),
    *(f"ul:{name}" for name in _ULTRALYTICS),
    *(f"monai:{name}" for name in _MONAI),
)


def build_foreign(name: str) -> tuple[nn.Module, int]:
    """The network and the side of its example input. Raises KeyError for a name that is none of `FOREIGN`."""
    package, _, own = name.partition(":")
    builders: dict[str, Callable[[str], tuple[nn.Module, int]]] = {
        "hf": _hugging_face,
        "smp": _smp,
        "ul": _ultralytics,
        "monai": _monai,
    }
    return builders[package](own)


def _hugging_face(name: str) -> tuple[nn.Module, int]:
    transformers: Any = importlib.import_module("transformers")
    wanted, settings = _HUGGING_FACE[name]
    network = getattr(transformers, wanted)
    config = network.config_class(**settings, num_labels=CLASSES)
    return network(config), settings.get("image_size", 96)


def _smp(name: str) -> tuple[nn.Module, int]:
    package: Any = importlib.import_module("segmentation_models_pytorch")
    network, encoder = _SMP[name]
    return getattr(package, network)(
        encoder, encoder_weights=None, classes=CLASSES
    ), 256 if name == "pan" else 96


def _ultralytics(name: str) -> tuple[nn.Module, int]:
    tasks: Any = importlib.import_module("ultralytics.nn.tasks")
    network = tasks.SegmentationModel if name.endswith("-seg") else tasks.DetectionModel
    return network(f"{name}.yaml", nc=CLASSES, verbose=False), 96


def _monai(name: str) -> tuple[nn.Module, int]:
    nets: Any = importlib.import_module("monai.networks.nets")
    settings = {"spatial_dims": 2, "in_channels": 3, **_MONAI[name]}
    classes = "num_classes" if name == "SEResNet50" else "out_channels"
    return getattr(nets, name)(**settings, **{classes: CLASSES}), 96
