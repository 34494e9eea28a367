"""MTAN: what is shared and what is a task's own, sizes, gradients, errors."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from compactmtl.config.recipe import EncoderConfig, Recipe
from compactmtl.errors import ConfigError
from compactmtl.models import MTANHead, MultiTaskModel, build_encoder, build_model
from compactmtl.models.mtan import BlockMaps, SharedAttention
from compactmtl.tasks import TargetSpec, build_tasks

SPECS = {
    "seg": TargetSpec("mask", classes=("a", "b", "c"), ignore_index=255),
    "depth": TargetSpec("depth", unit="m", mean=3.0, std=1.5),
}
RESNET: dict[str, Any] = {"name": "resnet18", "options": {"channels": [4, 8, 8, 16], "zero_init_last": False}}
BOTTLENECKS: dict[str, Any] = {
    "name": "resnet26",
    "output_stride": 8,
    "options": {"channels": [2, 2, 4, 4], "zero_init_last": False},
}
SEGNET: dict[str, Any] = {"name": "segnet", "options": {"width": 2}}


def built(encoder: dict[str, Any], *, size: tuple[int, int] = (64, 96), **head: Any) -> MultiTaskModel:
    torch.manual_seed(0)
    recipe = Recipe.model_validate(
        {
            "data": {"name": "any", "size": size},
            "tasks": {
                "seg": {"kind": "segmentation", "head": {"kind": "mtan", "width": 4, **head}},
                "depth": {"kind": "depth", "head": {"kind": "mtan", "width": 4, **head}},
            },
            "model": {"encoder": encoder},
        }
    )
    return build_model(recipe, build_tasks(recipe.tasks, SPECS))


@pytest.mark.parametrize("size", [(64, 96), (45, 75)])
@pytest.mark.parametrize("encoder", [RESNET, BOTTLENECKS, SEGNET])
def test_outputs_have_the_images_size(encoder: dict[str, Any], size: tuple[int, int]) -> None:
    model = built(encoder, size=size)
    outputs = model(torch.randn(2, 3, *size))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "seg": (2, 3, *size),
        "depth": (2, 1, *size),
    }


@pytest.mark.parametrize("encoder", [RESNET, BOTTLENECKS, SEGNET])
def test_a_task_trains_the_trunk_the_shared_layers_and_its_own_masks_alone(encoder: dict[str, Any]) -> None:
    model = built(encoder, predictor="deeplabv3")
    output = model(torch.randn(2, 3, 64, 96))["seg"]
    (output * torch.randn_like(output)).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("heads.depth.")}


def test_the_layers_between_stages_are_the_encoders() -> None:
    model = built(SEGNET)
    assert isinstance(model.encoder.attention, SharedAttention)
    assert len(model.encoder.attention) == 9  # between ten stages
    masks = {name: [id(p) for p in head.parameters()] for name, head in model.heads.items()}
    assert not set(masks["seg"]) & set(masks["depth"])


def test_a_closed_mask_shuts_a_stage_out() -> None:
    """With the last stage's mask at zero a task's output no longer depends on the image."""
    model = built(RESNET).eval()
    head = model.heads["seg"]
    assert isinstance(head, MTANHead)
    norm = cast(nn.Sequential, head.masks[-1])[-2]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    nn.init.constant_(norm.bias, -200.0)  # the sigmoid of which is 0 in float32
    one, other = (model(torch.randn(1, 3, 64, 96)) for _ in range(2))
    assert torch.equal(one["seg"], other["seg"])
    assert not torch.equal(one["depth"], other["depth"])


def test_a_resnet_keeps_its_function_and_its_names() -> None:
    plain = build_encoder(EncoderConfig.model_validate(RESNET), (64, 96), dense=True)
    blocks = build_encoder(EncoderConfig.model_validate(RESNET), (64, 96), dense=True, needs="blocks")
    assert isinstance(blocks.module, BlockMaps)
    blocks.module.load_state_dict(plain.module.state_dict())
    image = torch.randn(1, 3, 64, 96)
    [expected] = plain.module.eval()(image)
    maps = blocks.module.eval()(image)
    assert torch.equal(maps[-1], expected)
    assert [(m.shape[1], 64 // m.shape[2]) for m in maps] == [(m.channels, m.stride) for m in blocks.maps]
    assert [m.part for m in blocks.maps] == ["before", "map"] * 4


def test_the_widths_inside_follow_the_trunks_bottlenecks() -> None:
    head = built(BOTTLENECKS).heads["seg"]
    assert isinstance(head, MTANHead)
    hidden = [cast(nn.Conv2d, mask.get_submodule("0")).out_channels for mask in head.masks]
    assert hidden == [2, 2, 4, 4]


def test_an_odd_size_leaves_the_strides_as_they_are() -> None:
    built = build_encoder(EncoderConfig.model_validate(RESNET), (45, 75), dense=True, needs="blocks")
    assert [m.stride for m in built.maps] == [4, 4, 8, 8, 16, 16, 32, 32]


def test_other_heads_read_the_last_map_beside_it() -> None:
    recipe = Recipe.model_validate(
        {
            "data": {"name": "any", "size": (64, 96)},
            "tasks": {
                "seg": {"kind": "segmentation", "head": {"kind": "deeplabv3plus", "width": 4}},
                "depth": {"kind": "depth", "head": {"kind": "mtan", "width": 4}},
                "age": {"kind": "regression"},
            },
            "model": {"encoder": RESNET},
        }
    )
    model = build_model(
        recipe, build_tasks(recipe.tasks, {**SPECS, "age": TargetSpec("scalar", unit="years")})
    )
    outputs = model.eval()(torch.randn(2, 3, 64, 96))
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == {
        "seg": (3, 64, 96),
        "depth": (1, 64, 96),
        "age": (1,),
    }


@pytest.mark.parametrize(
    ("encoder", "why"),
    [
        ({"name": "mobilenetv3_small_050"}, "cannot read the stages of mobilenetv3_small_050"),
        ({"name": "convnext_atto"}, "cannot read the stages of convnext_atto"),
        ({"name": "resnet10t"}, "two blocks a stage"),
        ({"name": "resnet18", "options": {"out_index": 2}}, "reads every stage"),
    ],
)
def test_a_trunk_that_it_cannot_read_is_an_error(encoder: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        built(encoder)
