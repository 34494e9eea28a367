"""What is exported is built by NVIDIA's own builder: every recipe's network, others, and what surgery left.

Pictures are small here; the recipes at their own size are the business of tools/bench_tensorrt_rtx.py, which takes an hour.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compactmtl.backends.tensorrt.api import log_of
from compactmtl.backends.tensorrt.network import NetworkLayer, network_layers
from compactmtl.backends.tensorrt.parse import parse
from compactmtl.backends.tensorrt_rtx.capability import lacking
from compactmtl.config import load_recipe
from compactmtl.config.target import BF16_OPSET, Target
from compactmtl.data.base import Preprocessing
from compactmtl.errors import ConfigError
from compactmtl.export import export_onnx
from compactmtl.export.precision import apply_precision
from compactmtl.export.processing import Deployed
from compactmtl.surgery import compact
from tests.support.rtx import ALL, build, rtx
from tools.bench_tensorrt_rtx import PRECISIONS, build_network, export_float, lower, networks, target_of
from tools.surgery_zoo import NotMasked, mask

pytestmark = pytest.mark.slow
LONGEST = 128  # pixels of a picture's side here: the graph is that of the recipe's own size
ONLY_75 = {"7.5"}
# One of each kind of thing that networks elsewhere are made of.
FOREIGN = (
    "resnet18",
    "mobilenetv3_small_100",  # HardSwish, squeeze-and-excitation
    "densenet121",
    "ghostnet_100",
    "hrnet_w18_small",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",  # LayerNorm
    "poolformer_s12",  # GroupNorm
    "tv:shufflenet_v2_x0_5",  # channel shuffle
    "tv:deeplabv3_resnet50",
)


def layers_of(path: Path) -> tuple[NetworkLayer, ...]:
    api = rtx().library.load()
    log = log_of(api)
    with log.listen() as said:
        builder = api.Builder(log.logger)
        network, parser = parse(api, "TensorRT-RTX", builder, log.logger, said, path)
        found = network_layers(network)
        del network, parser
    return found


def check_all(path: Path, target: Target) -> None:
    """Every capability that the network's types allow gets an engine, and only Turing lacks any; it is told so."""
    every = [f"{one:.1f}" for one in ALL]
    without = {one for _, lack, _ in lacking(layers_of(path), every) for one in lack}
    assert without <= ONLY_75
    able = [float(one) for one in every if one not in without]
    built = build(path, for_capabilities(target, able))
    assert len(built.data) > 10_000
    if without:
        with pytest.raises(ConfigError, match=r"compute capability 7\.5 has no"):
            build(path, for_capabilities(target, [7.5]))


def for_capabilities(target: Target, able: list[float]) -> Target:
    options = rtx().config(target).model_copy(update={"compute": tuple(able)})
    return target.with_own({"tensorrt_rtx": options.model_dump(mode="json")})


def check_precisions(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path, *overrides: str) -> None:
    """Every precision for every capability. Tracing takes most of the time: targets of one opset share a float32 file."""
    floats: dict[str, Path] = {}
    for precision in PRECISIONS:
        target = target_of(precision, None, overrides)
        key = target.onnx.model_dump_json()
        if key not in floats:
            floats[key] = folder / f"float{len(floats)}" / "model.onnx"
            floats[key].parent.mkdir()
            export_float(model, inputs, target, floats[key])
        path = Path(shutil.copytree(floats[key].parent, folder / precision)) / floats[key].name
        check_all(lower(path, inputs, target), target)


def check_shared(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> None:
    """The same from one float32 file for all: of bf16's opset, which the other precisions are brought to from here, too.

    Each target's own opset is held by the smaller networks of this file, and for every recipe by tools/bench_tensorrt_rtx.py.
    """
    check_precisions(model, inputs, folder, f"onnx.opset={BF16_OPSET}")


def smaller(size: tuple[int, int]) -> list[str]:
    while max(size) > LONGEST:
        size = (size[0] // 2, size[1] // 2)
    return [f"data.size=[{size[0]},{size[1]}]"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [one.name for one in networks()])
def test_every_recipes_network_in_every_precision_for_every_capability(name: str, tmp_path: Path) -> None:
    model, inputs = build_network(name, smaller(load_recipe(name).data.size))
    check_shared(model, inputs, tmp_path)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FOREIGN)
def test_networks_from_elsewhere(name: str, tmp_path: Path) -> None:
    model, inputs = build_network(f"zoo:{name}")
    check_shared(model, inputs, tmp_path)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "pattern"),
    [("resnet18", "A"), ("densenet121", "A"), ("convnext_atto", "C"), ("vit_tiny_patch16_224", "C")],
)
def test_what_surgery_leaves_gathers_and_widened_norms_among_it(
    name: str, pattern: str, tmp_path: Path
) -> None:
    model, inputs = build_network(f"zoo:{name}")
    try:
        mask(model, inputs, pattern, 0)
    except NotMasked as reason:
        pytest.fail(str(reason))
    small = compact(model, inputs, gather=True).model
    before, after = (sum(p.numel() for p in one.parameters()) for one in (model, small))
    assert after < before
    if name == "resnet18":
        check_precisions(small.eval(), inputs, tmp_path)  # at each target's own opset
    else:
        check_shared(small.eval(), inputs, tmp_path)


def test_free_batch_and_size_with_a_profile(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(16, 4, 1),
    ).eval()
    shapes = "{image: {min: [1, 3, 16, 16], opt: [2, 3, 32, 48], max: [4, 3, 64, 96]}}"
    check_precisions(
        model,
        (torch.randn(2, 3, 32, 48),),
        tmp_path,
        "onnx.dynamic_batch=true",
        "onnx.dynamic_size=true",
        f"tensorrt_rtx.shapes={shapes}",
    )


def check_inputs(model: nn.Module, inputs: Mapping[str, Tensor], folder: Path) -> None:
    """Every precision for every capability, of a model whose inputs are no one picture in float32; its batch is free."""
    for precision in PRECISIONS:
        target = target_of(precision)
        path = folder / precision / "model.onnx"
        path.parent.mkdir()
        export_onnx(
            model,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            opset=target.onnx.opset,
            dynamic_batch=True,
        )
        apply_precision(path, target, [{name: one.numpy() for name, one in inputs.items()}] * 2)
        check_all(path, target)


def test_pixels_in_and_classes_out(tmp_path: Path) -> None:
    """Normalization and what follows an output inside the file. The builder transposes no bytes: they have to be cast first."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            maps = self.conv(image)
            return {"areas": maps[:, :5], "edges": maps[:, 5:], "shape": self.head(maps.mean((2, 3)))}

    after = {"areas": "argmax", "edges": "sigmoid", "shape": "softmax"}
    deployed = Deployed(Parts(), Preprocessing(size=(16, 24)), after).eval()
    pixels = torch.randint(
        0, 256, (2, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    check_inputs(deployed, {"image": pixels}, tmp_path)


def test_several_inputs_and_numbers_among_them(tmp_path: Path) -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.color, self.range = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
            self.camera, self.head = nn.Linear(3, 8), nn.Conv2d(16, 4, 1)

        def forward(self, rgb: Tensor, depth: Tensor, camera: Tensor) -> dict[str, Tensor]:
            features = torch.cat([self.color(rgb).relu(), self.range(depth).relu()], 1)
            maps = self.head(features)
            return {"areas": maps, "focal": maps.mean((2, 3)) + self.camera(camera)[:, :4]}

    generator = torch.Generator().manual_seed(0)
    shapes = {"rgb": (2, 3, 16, 24), "depth": (2, 1, 16, 24), "camera": (2, 3)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    check_inputs(Fused().eval(), inputs, tmp_path)
