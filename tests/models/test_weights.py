"""Initial weights: local files checked by name and shape, downloads that fail with a mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compactmtl.config.recipe import EncoderConfig
from compactmtl.errors import MISSING, ArtifactError, ConfigError, MissingDependencyError
from compactmtl.models import MultiTaskModel, build_encoder
from compactmtl.models.features import last_map

TINY: dict[str, Any] = {"channels": [4, 8, 8, 16], "layers": [1, 1, 1, 1]}


def config(path: Path | str | None = None, name: str = "resnet18", **rest: Any) -> EncoderConfig:
    options = rest.pop("options", TINY)
    weights = None if path is None else str(path)
    return EncoderConfig.model_validate({"name": name, "weights": weights, "options": options, **rest})


def trained(name: str = "resnet18", options: dict[str, Any] = TINY) -> nn.Module:
    """A timm classifier whose batch norm statistics are not the initial ones."""
    model: nn.Module = timm.create_model(name, num_classes=10, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
    return model.eval()


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "encoder.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize("dense", [True, False])
def test_a_file_of_timm_s_names_gives_timm_s_features(tmp_path: Path, dense: bool) -> None:
    model = trained()
    path = saved(model.state_dict(), tmp_path)
    encoder = build_encoder(config(path), (64, 64), dense=dense).module.eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = model.forward_features(image)  # type: ignore[operator]
        found = last_map(encoder(image))
    assert torch.equal(found, features if dense else features.mean((2, 3)))


def test_layers_that_a_feature_extractor_renames_are_found(tmp_path: Path) -> None:
    """ConvNeXt as a feature extractor has stem_0 where the whole model has stem.0."""
    options = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
    model = trained("convnext_atto", options)
    path = saved(model.state_dict(), tmp_path)
    encoder = build_encoder(config(path, "convnext_atto", options=options), (64, 64), dense=True).module
    found = encoder.state_dict()["stem_0.weight"]
    assert torch.equal(found, model.state_dict()["stem.0.weight"])


def test_an_earlier_map_needs_no_later_layers_but_takes_a_whole_file(tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path)
    built = build_encoder(config(path, options={**TINY, "out_index": -2}), (64, 64), dense=True)
    assert not any(name.startswith("layer4") for name in built.module.state_dict())


def test_position_embeddings_of_another_size_are_resized(tmp_path: Path) -> None:
    options = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    original = trained("vit_tiny_patch16_224", options).state_dict()
    path = saved(original, tmp_path)
    built = build_encoder(config(path, "vit_tiny_patch16_224", options=options), (64, 96), dense=False)
    found = built.module.state_dict()
    assert original["pos_embed"].shape == (1, 14 * 14 + 1, 24)
    assert found["pos_embed"].shape == (1, 4 * 6 + 1, 24)
    assert found["pos_embed"].std() > 0
    assert all(torch.equal(found[key], original[key]) for key in found if key != "pos_embed")


def test_the_encoder_of_our_own_checkpoint_is_taken(tmp_path: Path) -> None:
    encoder = build_encoder(config(), (64, 64), dense=True).module
    model = MultiTaskModel(encoder, {"seg": nn.Identity()})
    path = saved({**model.state_dict(), "heads.seg.weight": torch.zeros(3)}, tmp_path)
    found = build_encoder(config(path), (64, 64), dense=True).module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in encoder.state_dict().items())


def test_the_file_is_not_carried_along_in_the_encoder(tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path)
    encoder = build_encoder(config(path), (64, 64), dense=True).module
    for module in encoder.modules():
        assert "state_dict" not in getattr(module, "pretrained_cfg", {})


def test_missing_unknown_and_misshapen_weights_are_listed(tmp_path: Path) -> None:
    state = trained().state_dict()
    del state["layer1.0.conv1.weight"]
    state["layer9.weight"] = torch.zeros(1)
    state["bn1.bias"] = torch.zeros(7)
    with pytest.raises(ArtifactError) as error:
        build_encoder(config(saved(state, tmp_path)), (64, 64), dense=True)
    for part in (
        "missing: layer1.0.conv1.weight",
        "unknown: layer9.weight",
        "of another shape: bn1.bias is (7,), needs (64,)",
    ):
        assert part in error.value.message


def test_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path)
    with pytest.raises(ArtifactError, match="does not hold the weights of mobilenetv3_small_050"):
        build_encoder(config(path, "mobilenetv3_small_050", options={}), (64, 64), dense=False)


def test_a_file_that_is_absent_or_of_another_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        build_encoder(config(tmp_path / "none.safetensors"), (64, 64), dense=False)
    with pytest.raises(ConfigError, match=r"neither a \.safetensors nor a \.pth file"):
        build_encoder(config(tmp_path / "weights.onnx"), (64, 64), dense=False)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="is damaged"):
        build_encoder(config(path), (64, 64), dense=False)


def test_no_initialization_reads_no_file(tmp_path: Path) -> None:
    built = build_encoder(
        config(tmp_path / "gone.safetensors", pretrained=True), (64, 64), dense=False, initialize=False
    )
    assert built.channels == 16


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that answers, and an empty cache."""
    monkeypatch.setattr("compactmtl.models.download.unreachable", lambda url: "")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("online")
def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(
        MissingDependencyError, match="resnet18 could not be fetched: no route to host"
    ) as error:
        build_encoder(config(pretrained=True, options={}), (64, 64), dense=False)
    assert error.value.exit_code == MISSING
    assert "model.encoder.weights" in error.value.hint


def test_a_hub_that_is_switched_off_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's own offline error, from its own code: no network is asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="could not be fetched"):
        build_encoder(config(pretrained=True, options={}), (64, 64), dense=False)


@pytest.mark.slow
@pytest.mark.usefixtures("online")
def test_a_download_that_comes_through_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("resnet18").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))
    found = build_encoder(config(pretrained=True, options={}), (64, 64), dense=True).module.state_dict()
    assert torch.equal(found["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


def test_a_model_without_published_weights_is_an_error() -> None:
    with pytest.raises(ConfigError, match="timm has no weights of"):
        build_encoder(config(name="cspresnet50d", pretrained=True, options={}), (64, 64), dense=False)
