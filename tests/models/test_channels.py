"""Encoders for images of any number of channels, and RGB weights that are adapted to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from compactmtl.config.distillation import FeatureDistillationConfig
from compactmtl.config.recipe import DataConfig, EncoderConfig, Recipe
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.models import build_encoder
from compactmtl.models.features import last_map
from compactmtl.models.packaged import normalization_notes
from compactmtl.runs.model import example_inputs
from tests.models.test_weights import TINY, config, saved, trained

CHANNELS = [1, 2, 4, 5]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
    ("name", "options", "dense"),
    [("resnet18", TINY, True), ("resnet18", TINY, False), ("segnet", {"width": 2}, True)],
)
def test_an_encoder_takes_so_many_channels(
    name: str, options: dict[str, Any], dense: bool, channels: int
) -> None:
    encoder = EncoderConfig(name=name, options=options)
    built = build_encoder(encoder, (64, 64), dense=dense, channels=channels)
    found = last_map(built.module(torch.randn(2, channels, 64, 64)))
    assert found.shape[:2] == (2, built.channels)


def stem(network: nn.Module) -> Tensor:
    weight: Tensor = next(m for m in network.modules() if isinstance(m, nn.Conv2d)).weight.detach()
    return weight


@pytest.mark.parametrize("channels", CHANNELS)
def test_weights_of_rgb_are_adapted_as_timm_does_it(tmp_path: Path, channels: int) -> None:
    model = trained()
    path = saved(model.state_dict(), tmp_path)
    found = build_encoder(config(path), (64, 64), dense=True, channels=channels).module
    colors = model.get_parameter("conv1.weight").detach()
    if channels == 1:
        expected = colors.sum(1, keepdim=True)
    else:
        expected = torch.stack([colors[:, i % 3] for i in range(channels)], 1) * (3 / channels)
    torch.testing.assert_close(stem(found), expected)
    assert torch.equal(
        found.get_parameter("layer1.0.conv1.weight"), model.get_parameter("layer1.0.conv1.weight")
    )


def test_one_gray_channel_gives_what_equal_colors_give(tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path)
    gray = torch.randn(1, 1, 64, 64)
    color, single = (
        last_map(build_encoder(config(path), (64, 64), dense=True, channels=n).module.eval()(image))
        for n, image in ((3, gray.expand(1, 3, 64, 64)), (1, gray))
    )
    torch.testing.assert_close(single, color, rtol=1e-4, atol=1e-5)  # another order of the sum


def test_weights_of_the_same_number_of_channels_are_taken_as_they_are(tmp_path: Path) -> None:
    path = saved(trained(options={**TINY, "in_chans": 5}).state_dict(), tmp_path)
    found = build_encoder(config(path), (64, 64), dense=True, channels=5).module
    expected = timm.create_model("resnet18", num_classes=10, **TINY, in_chans=5).state_dict()
    assert stem(found).shape == expected["conv1.weight"].shape
    from safetensors.torch import load_file

    assert torch.equal(stem(found), load_file(path)["conv1.weight"])
    with pytest.raises(ArtifactError, match=r"conv1\.weight is"):
        build_encoder(config(path), (64, 64), dense=True, channels=4)


@pytest.mark.slow
def test_vgg_s_weights_are_adapted_too(tmp_path: Path) -> None:
    state = timm.create_model("vgg16_bn", features_only=True, out_indices=(5,)).state_dict()
    path = saved({key.replace("features_", "features."): value for key, value in state.items()}, tmp_path)
    found = build_encoder(
        EncoderConfig(name="segnet", weights=str(path)), (64, 64), dense=True, channels=1
    ).module
    colors = next(value for key, value in state.items() if value.ndim == 4)
    torch.testing.assert_close(stem(found), colors.sum(1, keepdim=True))


def test_in_chans_is_said_by_the_data() -> None:
    with pytest.raises(ConfigError, match=r"options\.in_chans") as caught:
        build_encoder(EncoderConfig(name="resnet18", options={"in_chans": 1}), (64, 64), dense=True)
    assert "data.channels" in caught.value.hint


def test_a_package_s_normalization_is_averaged() -> None:
    encoder = EncoderConfig(name="tf_efficientnet_lite0", weights="package:efficientnet-lite0")
    data = DataConfig.model_validate({"name": "scenes", "size": (8, 8), "channels": 1})
    (line,) = normalization_notes(encoder, data)
    assert "data.mean=[0.5] data.std=[0.5]" in line
    fitting = data.model_copy(update={"mean": (0.5,), "std": (0.5,)})
    assert not normalization_notes(encoder, fitting)


def test_example_inputs_have_the_recipe_s_channels() -> None:
    recipe = Recipe.model_validate(
        {
            "data": {"name": "scenes", "size": (16, 24), "channels": 4},
            "tasks": {"depth": {"kind": "depth"}},
        }
    )
    assert example_inputs(recipe, 2)[0].shape == (2, 4, 16, 24)


def test_a_teacher_s_mean_may_have_any_number() -> None:
    given = FeatureDistillationConfig.model_validate(
        {"encoder": {"name": "resnet18", "pretrained": True}, "mean": (0.5,), "std": (0.2,)}
    )
    assert given.mean == (0.5,)
