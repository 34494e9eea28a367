"""The networks that surgery is tried on, and the masks: half of the channels zeroed in five ways.

A filters and their batch norm zeroed, A2 filters zeroed with the norm's bias live, B input slices, C our coupled
groups, D Torch-Pruning's groups, with their norms and parameters of no layer.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from compactmtl.graph import ChannelGraph
from tools.surgery_zoo_foreign import FOREIGN, build_foreign

PATTERNS = ("A", "A2", "B", "C", "D")
OUTPUTS = (1000, 21)  # classes of the zoo: the layers that write them stay whole
ZOO = (
    *("resnet18", "resnet50", "resnet26d", "seresnet50", "resnext50_32x4d", "res2net50_26w_4s", "skresnet18"),
    *(
        "regnetx_002",
        "regnety_002",
        "regnetz_b16",
        "densenet121",
        "dla34",
        "dla60_res2net",
        "vovnet39a",
        "ese_vovnet19b_dw",
    ),
    *(
        "mobilenetv2_100",
        "mobilenetv3_small_100",
        "mobilenetv4_conv_small",
        "efficientnet_b0",
        "efficientnetv2_rw_t",
    ),
    *(
        "ghostnet_100",
        "ghostnetv2_100",
        "mnasnet_100",
        "fbnetc_100",
        "hardcorenas_a",
        "tinynet_e",
        "lcnet_050",
    ),
    *(
        "cspresnet50",
        "cspdarknet53",
        "darknet53",
        "hrnet_w18_small",
        "hrnet_w18_small_v2",
        "selecsls42b",
        "rexnet_100",
    ),
    *(
        "inception_v3",
        "xception41",
        "repvgg_a0",
        "mobileone_s0",
        "nfnet_l0",
        "nf_regnet_b0",
        "gernet_s",
        "ecaresnet26t",
    ),
    *(
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "pvt_v2_b0",
        "coat_tiny",
    ),
    *(
        "maxvit_tiny_tf_224",
        "convnext_atto",
        "convnextv2_atto",
        "poolformer_s12",
        "mixer_s32_224",
        "levit_128s",
    ),
    *(
        "efficientformer_l1",
        "edgenext_xx_small",
        "mobilevit_xxs",
        "fastvit_t8",
        "twins_pcpvt_small",
        "xcit_nano_12_p16_224",
    ),
    *(
        "tv:alexnet",
        "tv:vgg11_bn",
        "tv:squeezenet1_1",
        "tv:googlenet",
        "tv:shufflenet_v2_x0_5",
        "tv:shufflenet_v2_x1_0",
    ),
    *("tv:mobilenet_v2", "tv:mnasnet0_5", "tv:wide_resnet50_2"),
    *(
        "tv:fcn_resnet50",
        "tv:deeplabv3_resnet50",
        "tv:deeplabv3_mobilenet_v3_large",
        "tv:lraspp_mobilenet_v3_large",
    ),
)


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with random weights and norms, and one example input."""
    size = 96
    model: Any
    if name in FOREIGN:
        model, size = build_foreign(name)
    elif name.startswith("tv:"):
        extra: dict[str, Any] = {}
        if any(key in name for key in ("fcn", "deeplab", "lraspp")):
            extra = {"weights_backbone": None}
        if "googlenet" in name:
            extra = {"init_weights": True, "aux_logits": False}
        model = torchvision.models.get_model(name[3:], weights=None, **extra)
    else:
        model = timm.create_model(name)
        settings = model.default_cfg
        if settings.get("fixed_input_size"):
            size = settings["input_size"][-1]
    _randomize(model)
    return model.eval(), (torch.randn(1, 3, size, size),)


def _randomize(model: nn.Module) -> None:
    """Norms as after training; nothing stays at the zero that some networks begin with, such as a branch's gain."""
    module: Any
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.affine:
                statistics: Any = module
                statistics.running_mean.normal_(0, 0.2)
                statistics.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        for name, parameter in model.named_parameters():
            vector = parameter.numel() == max(parameter.shape, default=1)
            if vector and parameter.abs().max() < 1e-3:
                if name.endswith("bias"):
                    parameter.normal_(0, 0.1)
                else:
                    parameter.uniform_(0.5, 1.5)
            elif not parameter.any():
                parameter.normal_(0, parameter.shape[-1] ** -0.5)


def calibrate(model: nn.Module, image: tuple[Tensor, ...]) -> None:
    """Batch norms take the statistics of what they see, as after training.

    Without it a good part of the channels never gets past its ReLU, whatever the mask: dead, but by chance.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(torch.randn(16, *image[0].shape[1:]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def _half(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[: count // 2]


def _coupled(model: nn.Module, image: tuple[Tensor, ...], generator: torch.Generator) -> None:
    for family in ChannelGraph.trace(model, image).groups():
        if family.size < 4:
            continue
        dead = _half(family.size, generator).numpy()
        for member in family.members:
            if member.role != "consumer":
                index = torch.from_numpy(np.ascontiguousarray(member.indices[dead].ravel()))
                model.get_parameter(member.parameter).index_fill_(member.dim, index, 0.0)


def torch_pruning_groups(model: nn.Module, image: tuple[Tensor, ...]) -> Iterator[Any]:
    """Torch-Pruning's groups of channels, those of the layers that write the output left out."""
    import torch_pruning as tp

    with torch.enable_grad():  # its tracer follows autograd
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=image[0])
    layers = [m for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))]
    outputs = [layer for layer in layers if layer.weight.shape[0] in OUTPUTS]
    yield from graph.get_all_groups(ignored_layers=outputs, root_module_types=[nn.Conv2d, nn.Linear])


def carriers(group: Any) -> Iterator[tuple[list[tuple[Tensor, int]], list[int]]]:
    """What writes or scales the channels of a Torch-Pruning group: tensors with the dimension of the channel, and its indices.

    Layers, norms, and parameters of no layer, such as embeddings of positions and scales of a branch.
    """
    for dependency, indices in group:
        node = dependency.target
        module = node.module
        if "out" not in getattr(dependency.handler, "__name__", ""):
            continue
        if isinstance(module, nn.Parameter):
            yield [(module, int(node.pruning_dim))], list(indices)
        elif isinstance(module, (_ConvNd, nn.Linear, _BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            own = (module.weight, module.bias)
            yield [(value, 0) for value in own if value is not None], list(indices)


def _by_torch_pruning(model: nn.Module, image: tuple[Tensor, ...], generator: torch.Generator) -> None:
    for group in torch_pruning_groups(model, image):
        size = len(group[0][1])
        if size < 4:
            continue
        dead = set(_half(size, generator).tolist())
        for tensors, indices in carriers(group):
            if len(indices) == size:
                rows = torch.tensor([index for position, index in enumerate(indices) if position in dead])
                for value, dim in tensors:
                    value.data.index_fill_(dim, rows, 0.0)


LIMIT = 60  # seconds that Torch-Pruning gets for one network: its groups take minutes on some


@contextmanager
def limited(seconds: int = LIMIT) -> Iterator[None]:
    """Raise TimeoutError after so many seconds. One may lie in another: the outer goes on afterwards."""

    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    left = signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.alarm(max(left - int(time.monotonic() - started), 1))


class NotMasked(Exception):
    """The pattern does not apply to the network."""


def mask(model: nn.Module, image: tuple[Tensor, ...], pattern: str, seed: int) -> None:
    """Zero half of the channels as the pattern says. Raises NotMasked where it cannot."""
    generator = torch.Generator().manual_seed(seed)
    before = sum(int((p == 0).sum()) for p in model.parameters())
    with torch.no_grad():
        if pattern == "C":
            _coupled(model, image, generator)
        elif pattern == "D":
            try:
                with limited():
                    _by_torch_pruning(model, image, generator)
            except Exception as failure:
                raise NotMasked(f"Torch-Pruning: {type(failure).__name__}: {failure}") from failure
        else:
            _layer_by_layer(model, pattern, generator)
    if sum(int((p == 0).sum()) for p in model.parameters()) == before:
        raise NotMasked("the pattern finds nothing to zero")


def _layer_by_layer(model: nn.Module, pattern: str, generator: torch.Generator) -> None:
    """Each convolution and linear layer by itself, but for the first and for those that write the output."""
    modules: list[Any] = list(model.modules())
    layers = [i for i, module in enumerate(modules) if isinstance(module, (_ConvNd, nn.Linear))]
    for i in layers[1:]:
        layer = modules[i]
        weight = layer.weight
        if getattr(layer, "transposed", False):
            if layer.groups > 1:  # its weight has the outputs of one group alone
                continue
            weight = weight.transpose(0, 1)
        if pattern == "B":
            if weight.shape[1] > 1:
                weight[:, _half(weight.shape[1], generator)] = 0
            continue
        if weight.shape[0] in OUTPUTS:
            continue
        rows = _half(weight.shape[0], generator)
        weight[rows] = 0
        if layer.bias is not None:
            layer.bias[rows] = 0
        norm = modules[i + 1] if i + 1 < len(modules) else None
        if pattern == "A" and isinstance(norm, _BatchNorm) and norm.num_features == len(weight):
            norm.weight[rows] = 0
            norm.bias[rows] = 0
