"""Weights from an installed package: found without importing it, checked, renamed tensor by tensor."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from compactmtl.config import load_recipe
from compactmtl.config.recipe import DataConfig, EncoderConfig
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError
from compactmtl.models import build_encoder, packaged
from compactmtl.models.packaged import PACKAGES, Package, normalization_notes, package_of, to_timm

NAME = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A classifier whose tensors all differ from one another."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(NAME, num_classes=10)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def foreign(model: Any) -> dict[str, Tensor]:
    """The classifier's tensors under the names of EfficientNet-PyTorch, read off its modules."""
    own = {"_conv_stem": model.conv_stem, "_bn0": model.bn1, "_conv_head": model.conv_head}
    own |= {"_bn1": model.bn2, "_fc": model.classifier}
    for number, block in enumerate(block for stage in model.blocks for block in stage):
        named = {"_depthwise_conv": block.conv_dw}
        if hasattr(block, "conv_pwl"):
            named |= {"_expand_conv": block.conv_pw, "_bn0": block.bn1, "_bn1": block.bn2}
            named |= {"_project_conv": block.conv_pwl, "_bn2": block.bn3}
        else:
            named |= {"_bn1": block.bn1, "_project_conv": block.conv_pw, "_bn2": block.bn2}
        own |= {f"_blocks.{number}.{name}": module for name, module in named.items()}
    return {
        f"{name}.{key}": value for name, module in own.items() for key, value in module.state_dict().items()
    }


@pytest.fixture
def installed(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of these weights on the path, whose import would fail; the file of weights."""
    folder = tmp_path / "weights_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('it was imported')\n", "utf-8")
    file = folder / "some.pth"
    torch.save(foreign(network), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        packaged, "PACKAGES", {"lite0": Package("weights-of-a-test", NAME, file.name, digest)}
    )
    return file


def config(weights: str, name: str = NAME) -> EncoderConfig:
    return EncoderConfig(name=name, weights=weights)


def test_every_tensor_gets_timm_s_name(network: nn.Module) -> None:
    renamed = to_timm(foreign(network), network.state_dict())
    assert renamed.keys() == network.state_dict().keys()
    assert all(torch.equal(renamed[key], value) for key, value in network.state_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_the_encoder_computes_what_the_package_s_network_computes(network: Any) -> None:
    encoder = build_encoder(config("package:lite0"), (64, 64), dense=True).module.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval().forward_intermediates(image, intermediates_only=True)
        output = encoder(image)
    last = output[-1] if isinstance(output, list) else output
    assert any(torch.equal(last, value) for value in expected if value.shape == last.shape)


@pytest.mark.slow
def test_a_file_of_these_names_is_renamed_too(installed: Path) -> None:
    by_file = build_encoder(config(str(installed)), (64, 64), dense=True).module.state_dict()
    by_package = build_encoder(config("package:lite0"), (64, 64), dense=True).module.state_dict()
    assert all(torch.equal(by_file[key], value) for key, value in by_package.items())


def test_a_changed_file_is_refused(installed: Path) -> None:
    installed.write_bytes(installed.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="SHA-256"):
        build_encoder(config("package:lite0"), (64, 64), dense=True)


@pytest.mark.usefixtures("installed")
def test_another_architecture_is_refused_with_the_one_that_fits() -> None:
    with pytest.raises(ConfigError, match="not of resnet18") as error:
        build_encoder(config("package:lite0", "resnet18"), (64, 64), dense=True)
    assert NAME in error.value.hint


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Package("no-such-weights", NAME, "a.pth", "0")
    monkeypatch.setattr(packaged, "PACKAGES", {"absent": absent})
    with pytest.raises(MissingDependencyError, match="no-such-weights"):
        build_encoder(config("package:absent"), (64, 64), dense=True)


def test_an_unknown_package_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="no package of weights") as error:
        package_of("package:efficientnet-lite9")
    assert "efficientnet-lite" in error.value.hint


def test_the_extra_installs_every_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert all(f'"{package.distribution}>=' in text for package in PACKAGES.values())


def test_a_package_is_no_path_of_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        "extends: scenes/dense\nmodel: {encoder: {weights: 'package:efficientnet-lite0'}}\n", "utf-8"
    )
    assert load_recipe(file).model.encoder.weights == "package:efficientnet-lite0"


def test_other_normalization_than_the_package_s_is_warned_of() -> None:
    encoder = config("package:efficientnet-lite0")
    usual = DataConfig(name="scenes", size=(64, 64))
    (line,) = normalization_notes(encoder, usual)
    assert "data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5]" in line
    half = (0.5, 0.5, 0.5)
    assert not normalization_notes(encoder, usual.model_copy(update={"mean": half, "std": half}))
    assert not normalization_notes(EncoderConfig(name="resnet18"), usual)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("it ran",))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"a": _Harmful()}, file)
    with pytest.raises(ConfigError, match="more than weights"):
        build_encoder(config(str(file), "resnet18"), (64, 64), dense=True)
    assert "it ran" not in capsys.readouterr().out


def test_weights_of_a_data_parallel_checkpoint_are_found(tmp_path: Path) -> None:
    options: dict[str, Any] = {"channels": [4, 8, 8, 16], "layers": [1, 1, 1, 1]}
    state = timm.create_model("resnet18", **options).state_dict()
    file = tmp_path / "weights.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    encoder = build_encoder(
        EncoderConfig(name="resnet18", weights=str(file), options=options), (64, 64), dense=True
    ).module
    assert torch.equal(encoder.state_dict()["conv1.weight"], state["conv1.weight"])
