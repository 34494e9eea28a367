"""Plans: rebuilt without pickle, and refused where they do not fit."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from compactmtl.errors import ArtifactError
from compactmtl.surgery import Plan, apply_plan, compact, load_compact, save_compact


@pytest.fixture
def masked(net):  # type: ignore[no-untyped-def]
    with torch.no_grad():
        net.conv1.weight[[0, 3, 7]] = 0  # constants: a merge
        net.down.weight[[2]] = 0
        net.down.bias[[2]] = 0.5
        net.conv3.weight[[2]] = 0
        net.conv3.bias[[2]] = 0.5  # constants: bias shifts
    return net


def test_plan_on_the_trained_model_is_the_compact_model(masked, image) -> None:  # type: ignore[no-untyped-def]
    result = compact(masked, image)
    again = apply_plan(masked, Plan.from_json(result.plan.to_json()))
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_saved_model_is_rebuilt_from_a_fresh_one(masked, image, tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = compact(masked, image)
    save_compact(result, tmp_path / "compact")
    torch.manual_seed(9)
    fresh = type(masked)().double()
    rebuilt = load_compact(fresh, tmp_path / "compact")
    with torch.no_grad():
        expected, found = result.model(*image), rebuilt(*image)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    report = json.loads((tmp_path / "compact" / "surgery.json").read_text())
    assert report["macs"]["after"] < report["macs"]["before"]


def test_plan_for_another_model_is_refused(masked, image) -> None:  # type: ignore[no-untyped-def]
    plan = compact(masked, image).plan
    other = copy.deepcopy(masked)
    other.conv1 = torch.nn.Conv2d(8, 14, 3, padding=1, bias=False)
    with pytest.raises(ArtifactError, match="another model"):
        apply_plan(other, plan)


def test_indices_out_of_range_are_named(masked, image) -> None:  # type: ignore[no-untyped-def]
    data = json.loads(compact(masked, image).plan.to_json())
    data["slices"][0]["keep"][-1] = 999
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    with pytest.raises(ArtifactError, match=data["slices"][0]["tensor"]):
        apply_plan(masked, Plan.from_json(json.dumps(data)))
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())


@pytest.mark.parametrize("text", ["{", '{"version": 9, "signature": "x"}', '{"version": 1}', "[]"])
def test_damaged_plan_is_an_artifact_error(text: str) -> None:
    with pytest.raises(ArtifactError, match="not a plan"):
        Plan.from_json(text, "plan.json")


def test_missing_or_truncated_weights_are_named(masked, image, tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = save_compact(compact(masked, image), tmp_path / "compact")
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        load_compact(masked, folder)
    (folder / "plan.json").unlink()
    with pytest.raises(ArtifactError, match=r"plan\.json"):
        load_compact(masked, folder)
