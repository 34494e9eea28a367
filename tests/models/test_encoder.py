"""Encoders: timm networks by name as maps or vectors, options, sizes, errors with a mend."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from compactmtl.config.recipe import EncoderConfig
from compactmtl.errors import ConfigError
from compactmtl.models.encoder import build_encoder
from compactmtl.models.features import last_map

TINY: dict[str, Any] = {"channels": [4, 8, 8, 16], "layers": [1, 1, 1, 1]}


def config(name: str = "resnet18", **rest: Any) -> EncoderConfig:
    options = rest.pop("options", TINY if name == "resnet18" else {})
    return EncoderConfig.model_validate({"name": name, "options": options, **rest})


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("dense", [True, False])
def test_any_network_gives_what_it_says(name: str, dense: bool) -> None:
    built = build_encoder(config(name), (64, 96), dense=dense)
    with torch.inference_mode():
        features = last_map(built.module.eval()(torch.randn(2, 3, 64, 96)))
    assert features.shape[:2] == (2, built.channels)
    assert features.ndim == (4 if dense else 2)


@pytest.mark.slow
def test_a_channels_last_network_gives_channels_first() -> None:
    built = build_encoder(config("swin_tiny_patch4_window7_224"), (64, 96), dense=True)
    with torch.inference_mode():
        features = last_map(built.module.eval()(torch.randn(1, 3, 64, 96)))
    assert features.shape == (1, 768, 2, 3)


@pytest.mark.parametrize(("stride", "height"), [(8, 8), (16, 4), (32, 2)])
def test_output_stride_is_kept(stride: int, height: int) -> None:
    built = build_encoder(config(output_stride=stride), (64, 64), dense=True)
    assert last_map(built.module(torch.randn(1, 3, 64, 64))).shape[-1] == height


@pytest.mark.parametrize(("index", "channels", "height"), [(-1, 16, 2), (-2, 8, 4), (1, 4, 16)])
def test_out_index_picks_a_map(index: int, channels: int, height: int) -> None:
    built = build_encoder(config(options={**TINY, "out_index": index}), (64, 64), dense=True)
    assert built.channels == channels
    assert last_map(built.module(torch.randn(1, 3, 64, 64))).shape[-1] == height


def test_building_leaves_batch_norm_as_it_was() -> None:
    built = build_encoder(config(), (64, 64), dense=True)
    means = [m.running_mean for m in built.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert means
    assert all(mean is not None and not mean.any() for mean in means)
    assert built.module.training


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no model 'resnet81'") as error:
        build_encoder(config("resnet81"), (64, 64), dense=False)
    assert "resnet" in error.value.hint


def test_unknown_pretrained_tag_lists_the_tags() -> None:
    with pytest.raises(ConfigError, match="no weights 'best'") as error:
        build_encoder(config("resnet18.best"), (64, 64), dense=False)
    assert "resnet18.a1_in1k" in error.value.hint


@pytest.mark.parametrize(
    ("name", "options", "message", "hint"),
    [
        ("hrnet_w18_small", {"bogus": 1}, r"options\.bogus: hrnet_w18_small has no such option", "drop_rate"),
        (
            "efficientnet_lite0",
            {"bogus": 1},
            r"options\.bogus: .* no such option",
            "its options are .*stem_size",
        ),
        (
            "resnet18",
            {"drop_rate": 0.1, "act_layer": "nope"},
            r"options\.act_layer: .* with 'nope': KeyError",
            "leave",
        ),
        ("resnet10t", {"stem_width": "wide"}, r"options\.stem_width: .* with 'wide': TypeError", "value"),
        ("vgg11", {"act_layer": "relu6x"}, r"options\.act_layer: timm cannot build vgg11", "value"),
    ],
)
@pytest.mark.parametrize("dense", [True, False])
def test_an_option_that_the_network_cannot_use_is_named(
    name: str, options: dict[str, Any], message: str, hint: str, dense: bool
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_encoder(EncoderConfig(name=name, options=options), (64, 64), dense=dense)
    assert re.search(hint, caught.value.hint)


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"options\.stem_widht") as error:
        build_encoder(config(options={"stem_widht": 8}), (64, 64), dense=False)
    assert "stem_width" in error.value.hint


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "num_classes", "features_only"])
def test_an_option_that_the_recipe_sets_elsewhere_is_an_error(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"options\.{option}"):
        build_encoder(config(options={option: "x"}), (64, 64), dense=False)


def test_a_network_that_cannot_be_dilated_says_so() -> None:
    with pytest.raises(ConfigError, match="cannot be dilated"):
        build_encoder(config("vit_tiny_patch16_224", output_stride=8), (64, 64), dense=True)


def test_a_size_that_the_network_cannot_take_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot take images of 64x96"):
        build_encoder(config("vit_tiny_patch16_224", options={"img_size": 64}), (64, 96), dense=True)


@pytest.mark.parametrize("index", [9, "last", True])
def test_a_map_that_is_not_there_is_an_error(index: object) -> None:
    with pytest.raises(ConfigError):
        build_encoder(config(options={**TINY, "out_index": index}), (64, 64), dense=True)


def test_out_index_without_a_map_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no task reads a feature map"):
        build_encoder(config(options={**TINY, "out_index": -2}), (64, 64), dense=False)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet18", [2, 4, 8, 16, 32]),
        ("mobilenetv3_small_050", [2, 4, 8, 16, 32]),
        ("convnext_atto", [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", [16, 16, 16]),
    ],
)
def test_a_pyramid_holds_every_map_as_described(name: str, strides: list[int]) -> None:
    built = build_encoder(config(name), (64, 96), dense=True, needs="pyramid")
    with torch.inference_mode():
        maps = built.module.eval()(torch.randn(1, 3, 64, 96))
    assert [found.stride for found in built.maps] == strides
    assert [m.shape[1] for m in maps] == [found.channels for found in built.maps]
    assert [64 // m.shape[2] for m in maps] == strides
    assert built.maps[-1].channels == built.channels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("swin_tiny_patch4_window7_224", [4, 8, 16, 32]),
        ("efficientnet_b0", [2, 4, 8, 16, 32]),
        ("hrnet_w18_small", [2, 4, 8, 16, 32]),
    ],
)
def test_a_larger_networks_pyramid_holds_every_map(name: str, strides: list[int]) -> None:
    test_a_pyramid_holds_every_map_as_described(name, strides)


@pytest.mark.parametrize(("index", "strides"), [(1, [2, 4]), (-2, [2, 4, 8, 16]), (0, [2])])
def test_a_pyramid_ends_at_out_index(index: int, strides: list[int]) -> None:
    built = build_encoder(config(options={**TINY, "out_index": index}), (64, 64), dense=True, needs="pyramid")
    assert [found.stride for found in built.maps] == strides


def test_a_pyramid_to_a_map_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError):
        build_encoder(config(options={**TINY, "out_index": 9}), (64, 64), dense=True, needs="pyramid")
