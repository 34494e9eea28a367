"""An encoder's layers counted from its end, whatever form its parameters have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compactmtl.config.recipe import EncoderConfig
from compactmtl.models import build_encoder
from compactmtl.models.layer_groups import layers_behind
from compactmtl.models.multitask import TaskEncoders
from compactmtl.overparam import overparameterize

RESNET = EncoderConfig(name="resnet10t", options={"channels": [16, 16, 24, 32], "stem_width": 16})


def built(config: EncoderConfig, *, dense: bool = True) -> nn.Module:
    return build_encoder(config, (64, 64), dense=dense).module


def layers(config: EncoderConfig, encoder: nn.Module) -> list[list[str]]:
    """The modules of each layer, from the last one to the first."""
    found: dict[int, list[str]] = {}
    for name, count in layers_behind(config, encoder).items():
        found.setdefault(count, []).append(name)
    return [found[count] for count in range(len(found))]  # no number is left out


def test_timm_s_layers_are_the_stem_and_each_block() -> None:
    encoder = built(RESNET)
    last, *_, first = layers(RESNET, encoder)
    assert all(name.startswith("layer4.0.") for name in last)
    assert all(name.startswith(("conv1.", "bn1.")) for name in first)
    assert layers_behind(RESNET, encoder).keys() == dict(encoder.named_parameters()).keys()


def test_an_encoder_that_ends_early_counts_from_its_own_end() -> None:
    config = EncoderConfig(name="resnet10t", options={**RESNET.options, "out_index": 2})
    last, *rest = layers(config, built(config))
    assert all(name.startswith("layer2.0.") for name in last)
    assert len(rest) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("convnext_atto", "stem_", "stages_3.blocks.1."),  # its stages are children of other names
        ("swin_tiny_patch4_window7_224", "body.patch_embed.", "body.layers_3.blocks.1."),  # wrapped
        ("vit_tiny_patch16_224", "model.", "model.blocks.11."),  # wrapped by timm
    ],
)
def test_feature_extractors_of_other_names_have_timm_s_layers(name: str, first: str, last: str) -> None:
    config = EncoderConfig(name=name)
    found = layers(config, built(config))
    assert len(found) == 13  # a stem and twelve blocks
    assert all(one.startswith(last) for one in found[0])
    assert all(one.startswith(first) for one in found[-1])


def test_segnet_s_layers_are_its_stages() -> None:
    config = EncoderConfig(name="segnet", options={"width": 4})
    found = layers(config, built(config))
    assert len(found) == 10
    assert found[0][0].startswith("up.4.")
    assert found[-1][0].startswith("down.0.")


def test_factors_belong_to_the_layer_that_they_replace() -> None:
    encoder = built(RESNET)
    plain = layers_behind(RESNET, encoder)
    factorized = layers_behind(RESNET, overparameterize(encoder))
    assert factorized["layer3.0.conv1.U"] == factorized["layer3.0.conv1.V"] == plain["layer3.0.conv1.weight"]


def test_each_task_s_encoder_is_counted_on_its_own() -> None:
    one = built(RESNET)
    both = layers_behind(RESNET, TaskEncoders({"a": one, "b": built(RESNET)}))
    assert both == {f"{task}.{name}": n for task in "ab" for name, n in layers_behind(RESNET, one).items()}


def test_counting_uses_up_no_random_numbers() -> None:
    encoder = built(RESNET)
    before = torch.get_rng_state()
    layers_behind(RESNET, encoder)
    assert torch.equal(torch.get_rng_state(), before)
