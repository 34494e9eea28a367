"""SegNet: shapes, the two forms of unpooling, what surgery can follow, VGG's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compactmtl.config.recipe import EncoderConfig
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.graph import ChannelGraph
from compactmtl.models import SegNet, build_encoder
from compactmtl.models.segnet import CONVOLUTIONS, SegNetOptions, from_vgg


def config(**options: Any) -> EncoderConfig:
    return EncoderConfig(name="segnet", options={"width": 2, **options})


def lively(model: nn.Module) -> nn.Module:
    """The model in eval mode with batch norms that let both signs pass."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


@pytest.mark.parametrize("size", [(32, 64), (45, 60)])
def test_it_gives_a_map_of_the_images_size(size: tuple[int, int]) -> None:
    built = build_encoder(config(), size, dense=True)
    assert (built.channels, built.maps[-1].stride) == (2, 1)
    [features] = built.module.eval()(torch.randn(1, 3, *size))
    assert features.shape == (1, 2, *size)


def test_it_is_vgg16_and_its_mirror() -> None:
    with torch.device("meta"):
        model = SegNet()
    widths = [
        (module.in_channels, module.out_channels)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    assert widths[:13] == [
        (3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256),
        (256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512),
    ]  # fmt: skip
    assert widths[13:] == [
        (512, 512), (512, 512), (512, 512), (512, 256), (256, 256), (256, 256),
        (256, 128), (128, 128), (128, 128), (128, 64), (64, 64), (64, 64), (64, 64),
    ]  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_both_forms_of_unpooling_are_one_function_with_one_set_of_weights(training: bool) -> None:
    torch.manual_seed(0)
    one, other = SegNet(SegNetOptions(width=2)), SegNet(SegNetOptions(width=2, unpool="indices"))
    other.load_state_dict(lively(one).state_dict())
    image = torch.randn(2, 3, 45, 50)
    outputs = [model.train(training)(image)[-1] for model in (one, other)]
    assert torch.equal(outputs[0], outputs[1])


def test_blocks_gives_two_maps_a_stage_as_described() -> None:
    built = build_encoder(config(), (40, 50), dense=True, needs="blocks")
    maps = built.module.eval()(torch.randn(1, 3, 40, 50))
    assert len(maps) == len(built.maps) == 4 * len(CONVOLUTIONS)
    for found, said in zip(maps, built.maps, strict=True):
        assert found.shape[1:] == (said.channels, 40 // said.stride, 50 // said.stride)


@pytest.mark.slow
@pytest.mark.parametrize("unpool", ["exportable", "indices"])
def test_channels_are_followed_through_both_forms(unpool: Literal["exportable", "indices"]) -> None:
    torch.manual_seed(0)
    model = lively(SegNet(SegNetOptions(width=2, unpool=unpool)))
    graph = ChannelGraph.trace(model, (torch.randn(1, 3, 32, 32),))
    assert not graph.barriers
    assert sum(family.size for family in graph.groups()) > 0


@pytest.mark.slow
def test_a_channel_goes_with_the_one_that_puts_it_back() -> None:
    """What the decoder's first stage writes is put back at the maxima of the fourth stage's channels."""
    model = lively(SegNet(SegNetOptions(width=2)))
    graph = ChannelGraph.trace(model, (torch.randn(1, 3, 32, 32),))
    members = {
        family.name: {m.parameter for m in family.members if m.role == "producer"}
        for family in graph.groups()
    }
    joined = next(names for names in members.values() if "down.3.2.0.weight" in names)
    assert "up.0.2.0.weight" in joined


def vgg(seed: int = 0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    timm = pytest.importorskip("timm")
    torch.manual_seed(seed)
    network = timm.create_model("vgg16_bn", features_only=True, out_indices=(5,))
    state = {key.replace("features_", "features."): value for key, value in network.state_dict().items()}
    return network, state


@pytest.mark.slow
def test_vggs_weights_fill_the_first_half() -> None:
    """SegNet's deepest pooled map is what VGG-16 computes."""
    network, state = vgg()
    model = SegNet()
    missing, unexpected = model.load_state_dict(from_vgg(state), strict=False)
    assert not unexpected and all(key.startswith("up.") for key in missing)
    image = torch.randn(1, 3, 32, 32)
    model.eval(), network.eval()
    x = image
    with torch.inference_mode():
        for stage in model.down:
            x, _ = model.pool(stage(x))
        expected = network(image)[-1]
    np.testing.assert_array_equal(x.numpy(), expected.numpy())


@pytest.mark.slow
def test_weights_of_vgg_come_from_a_local_file(tmp_path: Path) -> None:
    _, state = vgg()
    path = tmp_path / "vgg.safetensors"
    save_file({**state, "pre_logits.fc1.weight": torch.zeros(1)}, path)
    loading = EncoderConfig(name="segnet", weights=str(path))
    built = build_encoder(loading, (32, 32), dense=True)
    assert torch.equal(built.module.get_parameter("down.0.0.0.weight"), state["features.0.weight"])
    narrow = EncoderConfig(name="segnet", weights=str(path), options={"width": 32})
    with pytest.raises(ArtifactError, match="of another shape"):
        build_encoder(narrow, (32, 32), dense=True)


def test_own_weights_come_back_less_the_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = build_encoder(config(), (32, 32), dense=True).module
    path = tmp_path / "own.safetensors"
    state = {f"encoder.{key}": value for key, value in own.state_dict().items()}
    save_file(
        {**state, "encoder.attention.0.0.weight": torch.zeros(1), "heads.t.last.bias": torch.zeros(1)}, path
    )
    loading = EncoderConfig(name="segnet", weights=str(path), options={"width": 2})
    found = build_encoder(loading, (32, 32), dense=True).module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in own.state_dict().items())


def test_an_option_that_it_does_not_have_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unpol") as error:
        build_encoder(config(unpol="indices"), (32, 32), dense=True)
    assert "unpool" in str(error.value) + error.value.hint


@pytest.mark.parametrize(
    ("what", "arguments"),
    [("no task reads one", {"size": (32, 32), "dense": False}), ("30x64", {"size": (30, 64), "dense": True})],
)
def test_what_it_cannot_give_is_an_error(what: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=what):
        build_encoder(config(), **arguments)


def test_an_output_stride_is_an_error() -> None:
    with pytest.raises(ConfigError, match="output_stride"):
        build_encoder(EncoderConfig(name="segnet", output_stride=8), (32, 32), dense=True)
