"""A latency table by way of a device: the kit that is written, what kit.py finds, the table that is fitted of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.backends import get_backend
from compactmtl.backends.onnxruntime.kit import OnnxRuntimeOnDevice
from compactmtl.backends.openvino.kit import OpenVinoOnDevice
from compactmtl.backends.precision import PrecisionError
from compactmtl.cli.main import main
from compactmtl.config.target import Target
from compactmtl.errors import OK, USAGE, ArtifactError, ConfigError, MachineError
from compactmtl.export.kit.on_device import MANIFEST, digest
from compactmtl.export.kit.table_on_device import main_of_table
from compactmtl.latency import Settings, check_target
from compactmtl.latency.kit import table_from_results, write_table_kit
from compactmtl.sparsity import LatencyTable, channel_groups
from compactmtl.verify.steps import layer_of

pytestmark = pytest.mark.slow  # each needs a kit of six networks

INPUT = (torch.zeros(1, 3, 16, 16),)
TARGET = Target(backend="onnxruntime")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 4, 1),
    )
    return layers.eval()


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kits") / "kit"
    write_table_kit(network(), INPUT, TARGET, "onnxruntime-cpu", folder, align=4, settings=Settings(cuts=5))
    return folder


@pytest.fixture(scope="module")
def measured(kit: Path) -> Path:
    out = kit.parent / "results.json"
    assert main_of_table(OnnxRuntimeOnDevice, kit, ["--name", "a board", "--out", str(out)]) == 0
    return out


@pytest.fixture
def results(measured: Path, tmp_path: Path) -> Path:
    """A copy to change, of a machine that was idle whatever this one is."""
    return changed(measured, tmp_path / "results.json", calm)


def calm(content: dict[str, Any]) -> None:
    for one in content["networks"].values():
        middle = float(np.median(one["samples_ms"]))
        one["samples_ms"] = [middle] * len(one["samples_ms"])


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Results with a change that their digest knows of: what a faulty device would write."""
    content = json.loads(source.read_text())
    change(content)
    content["digest"] = digest(content)
    target.write_text(json.dumps(content))
    return target


def test_a_device_s_times_become_a_table_of_the_network(results: Path, kit: Path) -> None:
    table = table_from_results(results)
    groups = channel_groups(network(), INPUT, scope="model")
    widths = {"0": (16, 3), "2": (24, 16), "4": (4, 24)}
    table.check(widths, (3, 16, 16), ())
    assert {name: layer.full for name, layer in table.layers.items()} == widths
    assert table.whole_ms is not None and table.whole_ms > 0
    assert (table.target, table.precision, table.batch) == ("onnxruntime-cpu", "fp32", 1)
    assert table.kit == json.loads(results.read_text())["kit"]
    assert len(groups) == 2


def test_a_table_from_a_kit_may_be_of_another_device(results: Path, tmp_path: Path) -> None:
    def elsewhere(content: dict[str, Any]) -> None:
        content["device"], content["versions"] = "a small board", {"onnxruntime": "1.2.3", "python": "3.8"}

    table = table_from_results(changed(results, tmp_path / "other.json", elsewhere))
    assert (table.device, table.runtime) == ("a small board", "1.2.3")
    check_target(table, "onnxruntime-cpu", TARGET)
    with pytest.raises(ConfigError, match="of device a small board"):
        check_target(table.model_copy(update={"kit": None}), "onnxruntime-cpu", TARGET)
    with pytest.raises(ConfigError, match="of precision fp32, and target x has int8"):
        check_target(table, "x", Target(backend="onnxruntime", precision="int8"))
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def edit(content: dict[str, Any]) -> None:
    content["networks"]["0"]["samples_ms"][0] *= 0.5


def other_model(content: dict[str, Any]) -> None:
    content["files"]["networks/1/model.onnx"] = "0" * 64


def other_kit(content: dict[str, Any]) -> None:
    content["manifest"] = content["manifest"].replace('"align": 4', '"align": 8')


def one_less(content: dict[str, Any]) -> None:
    del content["networks"]["3"]


def busy(content: dict[str, Any]) -> None:
    for one in content["networks"].values():
        one["samples_ms"] = [1.0, 3.0] * 10


def in_half(content: dict[str, Any]) -> None:
    content["networks"]["0"]["facts"]["layers"] = {"fp16": 3}


def without_names(content: dict[str, Any]) -> None:
    for one in content["networks"].values():
        one["steps"] = [["fused", 1.0]]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (other_model, ArtifactError, r"networks/1/model\.onnx on the device is another file"),
        (other_kit, ArtifactError, "manifest in it was changed"),
        (one_less, ArtifactError, "lacks networks"),
        (busy, MachineError, "was too busy"),
        (in_half, PrecisionError, "3 layers in fp16"),
        (without_names, ArtifactError, "names none of the network's layers"),
    ],
)
def test_results_that_are_no_table_are_refused(
    results: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        table_from_results(changed(results, tmp_path / "bad.json", change))


def test_files_that_were_edited_or_are_of_something_else_are_refused(results: Path, tmp_path: Path) -> None:
    content = json.loads(results.read_text())
    edit(content)
    results.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="its digest is off"):
        table_from_results(results)
    (tmp_path / "other.json").write_text('{"version": 1, "kit": "", "digest": ""}')
    with pytest.raises(ArtifactError, match="no results file of a table kit"):
        table_from_results(tmp_path / "other.json")
    with pytest.raises(ArtifactError, match="no such file"):
        table_from_results(tmp_path / "none.json")


def test_a_kit_that_was_changed_is_not_run(
    kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(kit, tmp_path / "copy"))
    (copy / "networks" / "2" / "model.onnx").write_bytes(b"another")
    assert main_of_table(OnnxRuntimeOnDevice, copy, ["--out", str(tmp_path / "r.json")]) == 2
    assert "is not the file that was exported" in capsys.readouterr().err
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, "kind": "other"}))
    assert main_of_table(OnnxRuntimeOnDevice, copy, []) == 2
    assert "another kind of kit" in capsys.readouterr().err


def test_openvino_times_its_steps_too(tmp_path: Path) -> None:
    target = Target(backend="openvino")
    write_table_kit(network(), INPUT, target, "openvino", tmp_path / "kit", settings=Settings(cuts=2))
    out = tmp_path / "results.json"
    assert main_of_table(OpenVinoOnDevice, tmp_path / "kit", ["--out", str(out)]) == 0
    table = table_from_results(changed(out, out, calm))
    assert table.milliseconds({name: layer.full for name, layer in table.layers.items()}) > 0
    assert get_backend("openvino").name == table.backend


def test_a_step_that_is_named_after_the_network_s_output_is_the_last_layer_s(
    results: Path, tmp_path: Path
) -> None:
    """As OpenVINO names it, whose device has no graph to look it up in: the kit knows."""

    def renamed(content: dict[str, Any]) -> None:
        for one in content["networks"].values():
            last = [
                number for number, (name, _) in enumerate(one["steps"]) if layer_of(name, ["4", "output"])
            ]
            assert last
            for number in last:
                one["steps"][number][0] = "output"

    found = table_from_results(changed(results, tmp_path / "renamed.json", renamed))
    expected = table_from_results(results)
    assert found.layers == expected.layers and found.layers["4"].at(4, 24) > 0


def test_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    words = ["latency", "test_kit:network", "--input", "1x3x16x16", "--cuts", "2", "--kit", "kit"]
    assert main([*words, "--out", "table.json"]) == USAGE
    assert main(words) == OK
    assert "python kit.py" in capsys.readouterr().out
    assert main_of_table(OnnxRuntimeOnDevice, Path("kit"), ["--table"]) == 0
    changed(Path("results.json"), Path("results.json"), calm)
    assert main(["latency", "--from", "results.json", "--out", "table.json"]) == OK
    assert LatencyTable.load("table.json").kit
    capsys.readouterr()
    assert main(["latency", "demo", "--from", "results.json"]) == USAGE
    assert "leave everything but --out out" in capsys.readouterr().err
    assert main(["latency"]) == USAGE
    assert "no network is named" in capsys.readouterr().err
    (tmp_path / "kit.txt").write_text("mine")
    assert main([*words[:-1], "kit.txt"]) == USAGE
    assert "is no kit" in capsys.readouterr().err
