"""The instance head: its output's size, what it needs of an encoder, and the way through surgery and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from compactmtl.config.recipe import EncoderConfig, HeadConfig, TaskConfig
from compactmtl.errors import ConfigError
from compactmtl.export import export_onnx
from compactmtl.models import MultiTaskModel
from compactmtl.models.encoder import build_encoder
from compactmtl.models.features import FeatureMap
from compactmtl.models.heads import build_head, head_config
from compactmtl.models.instance_head import CENTER_CHANCE, InstanceHead, pyramid
from compactmtl.sparsity import channel_groups
from compactmtl.surgery import compact
from compactmtl.tasks import TargetSpec, Task, build_task
from compactmtl.verify import check_parity

SIZE = (50, 64)
ENCODER = EncoderConfig(name="resnet18", options={"channels": [8, 16, 16, 24]})


def task(kind: str = "instances") -> Task:
    spec = TargetSpec("instances" if kind == "instances" else "mask", classes=("cat", "dog", "cow"))
    return build_task("things", TaskConfig.model_validate({"kind": kind}), spec)


def model() -> MultiTaskModel:
    encoder = build_encoder(ENCODER, SIZE, dense=True, needs="pyramid")
    head = build_head(task(), encoder.channels, HeadConfig(kind="instances", width=16), encoder.maps)
    return MultiTaskModel(encoder.module, {"things": head})


@pytest.mark.parametrize("size", [SIZE, (64, 64), (33, 47)])
def test_the_output_has_a_cell_for_each_4_by_4_pixels_and_parts_of_them(size: tuple[int, int]) -> None:
    output = model().eval()(torch.randn(2, 3, *size))["things"]
    assert output.shape == (2, 3 + 4, -(-size[0] // 4), -(-size[1] // 4))


def test_centers_start_out_rare_and_every_map_of_stride_4_or_more_counts() -> None:
    net = model().eval()
    head = net.heads["things"]
    assert isinstance(head, InstanceHead) and len(head.read) == 4
    with torch.no_grad():
        center = net(torch.zeros(1, 3, *SIZE))["things"][:, 4].sigmoid()
    assert abs(float(center.mean()) - CENTER_CHANCE) < CENTER_CHANCE  # its weights are random
    net.train()
    net(torch.randn(2, 3, *SIZE))["things"].sum().backward()
    assert all(p.grad is not None for p in net.heads.parameters())


def test_a_task_of_instances_has_this_head_and_no_other_task_has() -> None:
    assert head_config(task(), None).kind == "instances"
    with pytest.raises(ConfigError, match="fcn head cannot serve a task of kind instances"):
        head_config(task(), HeadConfig(kind="fcn"))
    with pytest.raises(ConfigError, match="instances head cannot serve a task of kind segmentation"):
        head_config(task("segmentation"), HeadConfig(kind="instances"))


def test_an_encoder_without_a_fine_map_is_refused() -> None:
    assert pyramid([FeatureMap(8, 2), FeatureMap(8, 4), FeatureMap(8, 8)]) == [1, 2]
    for strides, said in (([8, 16], "finest map has stride 8"), ([2], "none that is coarser")):
        with pytest.raises(ConfigError, match=said):
            pyramid([FeatureMap(8, stride) for stride in strides])


@pytest.mark.slow
def test_it_survives_surgery_and_export_with_the_same_instances(tmp_path: Path) -> None:
    net, image = model().eval(), torch.randn(1, 3, 64, 64)
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for family in channel_groups(net, (image,), kind="coupled"):
            for member in family.members:
                values = parameters[member.parameter].movedim(member.dim, 0)
                values[torch.as_tensor(member.indices[: family.size // 2].ravel())] = 0
    small = compact(net, (image,)).model
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    path = export_onnx(small, (image,), tmp_path / "model.onnx", input_names=["image"])
    assert check_parity(small, path, image).passed
    expected, found = (task().decode(one(image)["things"].detach()) for one in (net, small))
    assert_same_instances(expected, found)


def assert_same_instances(one: Tensor, other: Tensor) -> None:
    # a pixel may tip at an edge where two classes are equal to float precision
    assert (one == other).float().mean() > 0.999
