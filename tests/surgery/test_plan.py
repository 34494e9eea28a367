"""Plans: rebuilt without pickle, and refused where they do not fit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compactmtl.artifacts import files, hashes
from compactmtl.artifacts.hashes import write_hashes
from compactmtl.errors import ArtifactError, CompactWarning, SurgeryError
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
        expected, output = result.model(*image), rebuilt(*image)
    assert all(torch.equal(expected[key], output[key]) for key in expected)
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


@pytest.mark.slow
def test_weights_of_another_plan_are_refused_though_their_hash_holds(masked, image, tmp_path) -> None:  # type: ignore[no-untyped-def]
    small, whole = compact(masked, image), compact(type(masked)().double(), image)
    one, other = save_compact(small, tmp_path / "one"), save_compact(whole, tmp_path / "other")
    (one / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is damaged or was exchanged"):
        load_compact(masked, one)
    write_hashes(one)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors does not belong to .*plan\.json"):
        load_compact(masked, one)


@pytest.mark.slow
def test_a_writing_that_was_cut_off_is_never_read_as_whole(masked, image, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder = save_compact(compact(masked, image), tmp_path / "compact")
    first = folder / "hashes.json"
    kept = first.read_bytes()
    other = compact(masked, image, align=2)
    write = files.write_bytes
    for count in range(3):
        written: list[Path] = []

        def killed(path: Path, data: bytes, limit: int = count, written: list[Path] = written) -> None:
            if len(written) == limit:
                raise KeyboardInterrupt
            written.append(path)
            write(path, data)

        monkeypatch.setattr(hashes, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            save_compact(other, folder)
    assert first.read_bytes() == kept
    with pytest.raises(ArtifactError, match="damaged or was exchanged"):
        load_compact(masked, folder)


def test_a_folder_of_an_older_version_is_read_with_a_note(masked, image, tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = save_compact(compact(masked, image), tmp_path / "compact")
    (folder / "hashes.json").unlink()
    with pytest.warns(CompactWarning, match="an older version wrote it"):
        load_compact(masked, folder)


# One value of a sound plan changed: what the file's own numbers already show to be wrong.
DAMAGES: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "out of range": (("slices", 0, "keep"), [0, 999]),
    "repeated": (("slices", 0, "keep"), [0, 1, 1]),
    "negative": (("slices", 0, "keep"), [-1, 0]),
    "nothing kept": (("slices", 0, "keep"), []),
    "negative dimension": (("slices", 0, "dim"), -1),
    "no size": (("slices", 0, "size"), 0),
    "no groups": (("slices", 0, "groups"), 0),
    "too few ratios": (("merges", 0, "ratios"), [1.0]),
    "carrier among its sources": (
        ("merges", 0),
        {"weight": "w", "carrier": 1, "sources": [1], "ratios": [1.0]},
    ),
    "nothing merged": (("merges", 0, "sources"), []),
    "not a number": (("biases", 0, "values"), ["NaN", 0.0, 0.0]),
    "unknown edit": (("deletes",), []),
    "text for a number": (("slices", 0, "size"), "many"),
    "more zeros than can be held": (("absent",), {"conv1": [10**12]}),
    "a product that is too large": (("absent",), {"conv1": [10**6, 10**6]}),
    "a constant that is too large": (("constants",), [{"module": "conv1", "size": [10**12]}]),
    "too wide": (
        ("full_width",),
        [{"module": "bn1", "size": 10**12, "kept": 4, "input_dim": -1, "output_dim": -1}],
    ),
    "a span of nothing": (("spans",), [{"module": "conv1", "inputs": [3, 3]}]),
    "a span that is too wide": (("spans",), [{"module": "conv1", "outputs": [0, 10**12], "size": 10**12}]),
    "a span outside": (("spans",), [{"module": "conv1", "outputs": [0, 9], "size": 8}]),
    "a constant for some channels": (
        ("spans",),
        [{"module": "conv1", "outputs": [0, 4], "size": 8, "constants": [1.0]}],
    ),
    "values of no shape": (("constants",), [{"module": "conv1", "values": [1.0]}]),
}

# What only the model shows to be wrong.
MISFITS: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "another size": (("slices", 0, "size"), 13),
    "no such dimension": (("slices", 0, "dim"), 7),
    "no such tensor": (("slices", 0, "tensor"), "conv1.wieght"),
    "no such module": (("slices", 0, "tensor"), "conv9.weight"),
    "a sliced batch count": (("slices", 0, "tensor"), "bn1.num_batches_tracked"),
    "grouped by chance": (("slices", 0, "groups"), 2),
    "merge out of range": (("merges", 0, "carrier"), 99),
    "merge of a vector": (("merges", 0, "weight"), "bn1.weight"),
    "merge of no tensor": (("merges", 0, "weight"), "nowhere.weight"),
    "bias of another length": (("biases", 0, "values"), [1.0]),
    "bias that is there as new": (("biases", 0, "new"), True),
    "new bias without a place": (("biases", 0), {"bias": "bn0.offset", "values": [1.0], "new": True}),
    "new bias of another length": (("biases", 0), {"bias": "stem.bias", "values": [1.0], "new": True}),
    "scaled rows out of range": (("scales",), [{"tensor": "conv1.weight", "rows": [99], "factor": 2.0}]),
    "groups of no layer": (("groups",), {"conv9": 2}),
    "groups of a norm": (("groups",), {"bn1": 2}),
    "groups of a plain layer": (("groups",), {"conv1": 5}),
    "attribute of no module": (("attributes",), {"block": {"width": 3}}),
    "attribute that is none": (("attributes",), {"conv1": {"width": 3}}),
    "constant of no module": (("constants",), [{"module": "conv9"}]),
    "zeros of no module": (("absent",), {"conv9": [3]}),
    "gather of no module": (("gathers",), [{"module": "conv9", "inputs": [0]}]),
    "gather of a norm": (("gathers",), [{"module": "bn1", "inputs": [0]}]),
    "span of no module": (("spans",), [{"module": "conv9", "inputs": [0, 1]}]),
    "span that a norm reads": (("spans",), [{"module": "bn1", "inputs": [0, 1]}]),
    "span of other inputs": (("spans",), [{"module": "conv1", "inputs": [0, 99]}]),
    "span of other outputs": (("spans",), [{"module": "bn1", "outputs": [0, 2], "size": 99}]),
    "full width of no module": (
        ("full_width",),
        [{"module": "norm9", "size": 8, "kept": 4, "input_dim": -1, "output_dim": -1}],
    ),
    "contracted that is no module": (("contracted",), ["conv9"]),
    "fused that is no module": (("fused",), ["conv9"]),
}


@pytest.fixture
def sound(masked: Any, image: Any) -> str:
    """The plan of the masked net, which is the same in every test: made once."""
    if not _SOUND:
        _SOUND.append(compact(masked, image).plan.to_json())
    return _SOUND[0]


_SOUND: list[str] = []


def _changed(plan: str, place: tuple[str | int, ...], value: Any) -> str:
    data = json.loads(plan)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return json.dumps(data).replace('"NaN"', "NaN")


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_shows_when_a_plan_is_read(sound: str, name: str) -> None:
    text = _changed(sound, *DAMAGES[name])
    with pytest.raises(ArtifactError, match=r"plan\.json: not a plan that can be read") as caught:
        Plan.from_json(text, "plan.json")
    assert caught.value.hint


@pytest.mark.parametrize("name", MISFITS)
def test_plan_that_does_not_fit_is_refused_and_the_model_untouched(
    masked: Any, sound: str, name: str
) -> None:
    plan = Plan.from_json(_changed(sound, *MISFITS[name]))
    before = {key: value.clone() for key, value in masked.state_dict().items()}
    with pytest.raises(ArtifactError, match="the plan") as caught:
        apply_plan(masked, plan)
    assert caught.value.hint
    assert all(torch.equal(value, before[key]) for key, value in masked.state_dict().items())
    assert masked.conv1.out_channels == 12


def test_an_output_that_the_model_does_not_give_is_named(masked: Any, image: Any, sound: str) -> None:
    small = apply_plan(masked, Plan.from_json(_changed(sound, ("outputs",), ["nowhere"])))
    with pytest.raises(SurgeryError, match="nowhere"):
        small(*image)


def test_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ArtifactError, match=r"plan\.json: not a plan"):
        Plan.load(tmp_path / "plan.json")
