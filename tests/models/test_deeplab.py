"""DeepLab heads: torchvision's function, dilations by stride, the finer map of V3+, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from compactmtl.config.recipe import HeadConfig, TaskConfig
from compactmtl.errors import ConfigError
from compactmtl.models import DeepLabV3Head, DeepLabV3PlusHead, FeatureMap, build_head
from compactmtl.models.deeplab import dilations, low_level
from compactmtl.tasks import TargetSpec, build_task

SEG = build_task("seg", TaskConfig(kind="segmentation"), TargetSpec("mask", classes=("a", "b", "c")))
PYRAMID = (FeatureMap(4, 2), FeatureMap(8, 4), FeatureMap(8, 8), FeatureMap(16, 16))


def config(kind: str = "deeplabv3", **rest: object) -> HeadConfig:
    return HeadConfig.model_validate({"kind": kind, "width": 8, **rest})


@pytest.mark.parametrize("training", [True, False])
def test_it_is_torchvisions_deeplab(training: bool) -> None:
    """With torchvision's weights, in its order of layers, and its dropout off."""
    torch.manual_seed(0)
    reference = DeepLabHead(6, 3)
    head = DeepLabV3Head(6, 3, HeadConfig(kind="deeplabv3", width=256), stride=8)
    ours, theirs = head.state_dict(), reference.state_dict()
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs.values()]
    head.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    for module in (*head.modules(), *reference.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(3, 6, 5, 7)
    with torch.inference_mode():
        found, expected = head.train(training)(x), reference.train(training)(x)
    torch.testing.assert_close(
        found, expected, rtol=1e-4, atol=1e-5
    )  # float32, statistics summed in another order


@pytest.mark.parametrize(
    ("stride", "rates"), [(16, (6, 12, 18)), (8, (12, 24, 36)), (32, (3, 6, 9)), (64, (1, 3, 4))]
)
def test_dilations_follow_the_stride(stride: int, rates: tuple[int, ...]) -> None:
    assert dilations(stride, config()) == rates
    assert dilations(stride, config(rates=(2, 4))) == (2, 4)


def test_a_built_head_takes_the_stride_of_the_last_map() -> None:
    head = build_head(SEG, 16, config(), (FeatureMap(16, 8),))
    assert isinstance(head, DeepLabV3Head)
    found = [
        module.dilation[0]
        for module in head.modules()
        if isinstance(module, nn.Conv2d) and module.dilation[0] > 1
    ]
    assert found == [12, 24, 36]


def test_one_image_can_be_trained_on() -> None:
    head = DeepLabV3Head(4, 2, config(), stride=16).train()
    output = head(torch.randn(1, 4, 3, 4), (12, 16))
    assert output.shape == (1, 2, 12, 16)
    assert output.isfinite().all()


def test_v3_plus_reads_the_map_of_stride_four_and_the_last() -> None:
    head = build_head(SEG, 16, config("deeplabv3plus", depth=2), PYRAMID).eval()
    assert isinstance(head, DeepLabV3PlusHead) and head.low == 1
    maps = [torch.randn(2, found.channels, 64 // found.stride, 96 // found.stride) for found in PYRAMID]
    output = head(maps, (64, 96))
    assert output.shape == (2, 3, 64, 96)
    assert head(maps).shape == (2, 3, 16, 24)
    for index, matters in enumerate((False, True, False, True)):
        changed = [found + 1 if index == where else found for where, found in enumerate(maps)]
        assert torch.equal(head(changed, (64, 96)), output) != matters


def test_v3_plus_takes_the_nearest_finer_map_where_none_has_stride_four() -> None:
    assert low_level((FeatureMap(4, 2), FeatureMap(8, 8), FeatureMap(16, 16))) == 1
    assert (
        low_level(
            (FeatureMap(4, 2, "before"), FeatureMap(4, 2), FeatureMap(8, 4, "before"), FeatureMap(8, 4))
        )
        == 1
    )


@pytest.mark.parametrize(
    "maps", [(FeatureMap(8, 16), FeatureMap(8, 16)), (FeatureMap(8, 4), FeatureMap(8, 1)), ()]
)
def test_v3_plus_needs_a_finer_map(maps: tuple[FeatureMap, ...]) -> None:
    with pytest.raises(ConfigError, match="finer map") as error:
        build_head(SEG, 8, config("deeplabv3plus"), maps)
    assert "deeplabv3" in error.value.hint
