"""Checkpoints come back exactly, and a wrong one is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compactmtl.artifacts.hashes import write_hashes
from compactmtl.artifacts.layout import STATE, SUMMARY, WEIGHTS
from compactmtl.errors import ArtifactError
from compactmtl.overparam import overparameterize
from compactmtl.runs import Run
from compactmtl.runs.checkpoint import load_state, load_summary, load_weights, save_best, save_checkpoint
from tests.support.real_runs import write_run


def small(seed: int = 0, width: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def test_weights_and_state_come_back_bit_equal(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "last", model, {"optimizer": optimizer.state_dict(), "position": [1, 2, 3]})

    other = small(1)
    load_weights(other, tmp_path / "last")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    state = load_state(tmp_path / "last")
    assert state is not None and state["position"] == [1, 2, 3]
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(value, state["optimizer"]["state"][index][name])


def test_a_layer_used_twice_is_saved_and_loaded(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": layer, "b": layer})
    save_checkpoint(tmp_path / "last", model, {})
    other = nn.Linear(2, 2)
    load_weights(nn.ModuleDict({"a": other, "b": other}), tmp_path / "last")
    assert torch.equal(layer.weight, other.weight)


def test_no_state_means_none(tmp_path: Path) -> None:
    assert load_state(tmp_path / "last") is None


def test_no_weights_is_an_error_naming_the_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"best/weights\.safetensors: no such checkpoint"):
        load_weights(small(), tmp_path / "best")


def test_weights_of_another_shape_name_the_tensor(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last", small(), {})
    with pytest.raises(ArtifactError, match=r"tensor 0\.weight has shape \(3, 3, 3, 3\).*\(4, 3, 3, 3\)"):
        load_weights(small(width=4), tmp_path / "last")


def test_a_tensor_too_few_or_too_many_is_named(tmp_path: Path) -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 3, 3))
    save_checkpoint(tmp_path / "few", convolution, {})
    with pytest.raises(ArtifactError, match=r"lacks the tensor 1\.weight"):
        load_weights(small(), tmp_path / "few")
    save_checkpoint(tmp_path / "many", small(), {})
    with pytest.raises(ArtifactError, match=r"has the tensor 1\.bias, which the model does not"):
        load_weights(convolution, tmp_path / "many")


@pytest.mark.parametrize("keep", [0, 7, 100])
def test_truncated_files_are_errors_naming_the_file(tmp_path: Path, keep: int) -> None:
    save_checkpoint(tmp_path / "last", small(), {"position": [1, 2, 3]})
    for name in (WEIGHTS, STATE):
        path = tmp_path / "last" / name
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is damaged"):
        load_weights(small(), tmp_path / "last")
    with pytest.raises(ArtifactError, match=r"state\.pt is damaged"):
        load_state(tmp_path / "last")


class Malicious:
    """What a pickle could run on loading."""

    ran = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (_run, ())


class _run:
    def __init__(self) -> None:
        Malicious.ran = True


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    torch.save({"position": Malicious()}, tmp_path / "last" / STATE)
    write_hashes(tmp_path / "last")
    with pytest.raises(ArtifactError, match="is damaged: Weights only load failed"):
        load_state(tmp_path / "last")
    assert not Malicious.ran


def test_the_summary_comes_back_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    save_best(tmp_path / "best", small(), {"epoch": 3, "metrics": {"age": {"mae": 5.25}}})
    assert load_summary(tmp_path / "best") == {"epoch": 3, "metrics": {"age": {"mae": 5.25}}}
    (tmp_path / "best" / SUMMARY).write_text("{")
    with pytest.raises(ArtifactError, match=r"state\.json is damaged"):
        load_summary(tmp_path / "best")
    with pytest.raises(ArtifactError, match="holds no checkpoint yet"):
        load_summary(tmp_path / "last")


@pytest.mark.parametrize("factorized", ["saved", "loaded"])
def test_factors_and_plain_weights_are_told_apart(tmp_path: Path, factorized: str) -> None:
    plain = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    ours = overparameterize(plain)
    saved, loaded = (ours, plain) if factorized == "saved" else (plain, ours)
    save_best(tmp_path / "best", saved, {})
    with pytest.raises(ArtifactError, match="lacks the tensor") as caught:
        load_weights(loaded, tmp_path / "best")
    assert "0 was over-parameterized on one side alone" in caught.value.hint


def test_a_run_in_a_folder_named_by_a_tilde_is_read_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "~" / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    assert Run.open("~/runs/one").recipe.data.name == "scenes"
