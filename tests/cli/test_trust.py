"""Files from elsewhere: a recipe, a run or a bundle that names code runs none of it without --trust."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import BUNDLE_FILE, MODEL_FILE
from compactmtl.backends import get_backend
from compactmtl.backends.targets import machine_files
from compactmtl.backends.tensorrt.options import TensorRTConfig, tensorrt_config
from compactmtl.cli.main import main
from compactmtl.config import trusting
from compactmtl.config.target import Target
from compactmtl.errors import OK, USAGE, ArtifactError
from compactmtl.export.bundle import Bundle, BundleHashError
from tests.support.bundles import conv_bundle
from tests.support.real_runs import write_run

CODE = """
import numpy as np, torch
from compactmtl.tasks import TargetSpec
with open({mark!r}, "a") as mark:
    mark.write("ran")

class Pictures:
    specs = {{"kind": TargetSpec("class", classes=("owl", "wren"))}}

    def __init__(self, config, split):
        self.size = config.size

    def __len__(self):
        return 8

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (3, *self.size), np.uint8)
        return {{"image": torch.from_numpy(pixels), "targets": {{"kind": torch.tensor(index % 2)}}}}

    def identifier(self, index):
        return f"picture {{index}}"
"""
RECIPE = """
data: {name: "strange:Pictures", size: [32, 32], batch_size: 4}
tasks:
  kind: {kind: classification}
model: {encoder: {name: test_resnet}}
train: {epochs: 1, max_steps: 1}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run of a class of somebody's own, which leaves a mark when it is imported; and a picture."""
    (tmp_path / "strange.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    (tmp_path / "strange.yaml").write_text(RECIPE)
    with trusting():
        write_run(tmp_path / "run", RECIPE)
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "photo.png")
    forget(tmp_path)
    yield tmp_path
    sys.modules.pop("strange", None)


def forget(place: Path) -> None:
    """As if the module had never been imported."""
    sys.modules.pop("strange", None)
    (place / "mark").unlink(missing_ok=True)


NEED_DATA = [
    ["data", "check", "strange:Pictures", "size=[32,32]"],
    ["recipes", "check", "strange.yaml"],
    ["train", "strange.yaml", "--out", "runs"],
    ["train", "strange.yaml", "--dry-run"],
    ["train", "run/recipe.yaml", "--out", "runs", "--name", "again"],
    ["export", "run"],
    ["probe", "run"],
    ["report", "run"],
]
# What these do needs the weights and run.json alone: it is done, and nothing of the class runs.
NEED_NONE = [
    ["recipes", "show", "strange.yaml", "--resolved"],
    ["compact", "run"],
    ["predict", "run", "photo.png"],
]


@pytest.mark.parametrize("words", NEED_DATA, ids=" ".join)
def test_a_class_that_a_file_names_does_not_run(
    place: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == USAGE
    said = capsys.readouterr().err
    assert "strange:Pictures is code" in said and str(place / "strange.py") in said
    assert "--trust" in said
    assert not (place / "mark").exists()
    assert "strange" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("words", NEED_NONE, ids=" ".join)
def test_what_needs_no_data_runs_nothing_of_the_class(place: Path, words: list[str]) -> None:
    assert main(words) == OK
    assert not (place / "mark").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [NEED_DATA[0], NEED_DATA[1], NEED_DATA[2], NEED_DATA[7], ["compact", "run", "--evaluate"]],
    ids=" ".join,
)
def test_with_the_users_word_it_runs(place: Path, words: list[str]) -> None:
    assert main([*words, "--trust"]) == OK
    assert (place / "mark").read_text() == "ran"


def test_a_file_cannot_give_the_word_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("trust", "data.trust", "data.options.trust"):
        main(["train", "strange.yaml", f"{key}=true", "--dry-run"])
    assert not (place / "mark").exists()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return conv_bundle(tmp_path / "bundle", Target(backend="onnxruntime")).path


def rewrite(folder: Path, change: Any) -> None:
    """Change bundle.json, with hashes that fit."""
    info = json.loads((folder / BUNDLE_FILE).read_text())
    change(info)
    info["files"] = {name: sha256_file(folder / name) for name in info["files"]}
    (folder / BUNDLE_FILE).write_text(json.dumps(info))


@pytest.mark.parametrize("key", ["lean_runtime", "timing_cache"])
def test_a_bundle_may_name_no_file_of_a_machine(bundle: Path, key: str) -> None:
    # of another backend than the bundle's too: earlier versions wrote the keys of all
    rewrite(bundle, lambda info: info["target"].update({"tensorrt": {key: "/tmp/strange.so"}}))
    with pytest.raises(ArtifactError, match=f"target.tensorrt.{key} names '/tmp/strange.so'"):
        Bundle.open(bundle)
    with (
        trusting(),
        pytest.raises(ArtifactError),
    ):  # whoever trusts the code of a data set trusts no path either
        Bundle.open(bundle)


def test_a_target_leaves_its_machines_paths_behind() -> None:
    options = TensorRTConfig(lean_runtime="/opt/lean.so", timing_cache="/home/me/times", workspace_mib=7)
    kept = get_backend("tensorrt").portable(Target(backend="tensorrt", tensorrt=options))
    assert tensorrt_config(kept) == TensorRTConfig(workspace_mib=7)
    without = TensorRTConfig(timing_cache=None)
    assert without.portable == without
    assert not machine_files(kept)


@pytest.mark.parametrize(
    "name", ["../secret.bin", "sub/weights", "/etc/passwd", "..", "sub\\weights", "C:weights", ""]
)
@pytest.mark.parametrize("where", ["initializer", "constant", "inner graph"])
def test_weights_lie_beside_the_model(bundle: Path, name: str, where: str) -> None:
    point_elsewhere(bundle / MODEL_FILE, name, where)
    rewrite(bundle, lambda info: None)
    with pytest.raises(ArtifactError, match="does not lie beside it"):
        Bundle.open(bundle)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_a_link_out_of_the_folder_is_not_beside_it(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (bundle / "weights.bin").symlink_to(tmp_path / "secret.bin")
    point_elsewhere(bundle / MODEL_FILE, "weights.bin", "initializer")
    rewrite(bundle, lambda info: None)
    with pytest.raises(ArtifactError, match="a link out of the folder"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["weights.bin", "model.engine"])
def test_a_file_without_a_hash_is_not_read(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(bytes(64))
    if name == "weights.bin":
        point_elsewhere(bundle / MODEL_FILE, name, "initializer")
        rewrite(bundle, lambda info: None)
    with pytest.raises(BundleHashError, match="not among the bundle's files"):
        Bundle.open(bundle)


def test_a_foreign_model_file_reads_nothing_elsewhere(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point_elsewhere(bundle / MODEL_FILE, "../../secret", "initializer")
    assert main(["profile", str(bundle / MODEL_FILE)]) == USAGE
    assert "does not lie beside it" in capsys.readouterr().err


def test_a_lean_runtime_is_for_an_engine(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(bundle), "photo.png", "--lean-runtime", "strange.so", "--trust"]) == USAGE
    assert "loads no lean runtime" in capsys.readouterr().err


def point_elsewhere(model: Path, location: str, where: str) -> None:
    """Add a tensor to an ONNX file whose values lie in another file."""
    graph = onnx.load(model)
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "strange")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if where == "initializer":
        graph.graph.initializer.append(tensor)
    else:
        node = helper.make_node("Constant", [], ["unused"], value=tensor)
        if where == "inner graph":
            inner = helper.make_graph(
                [node], "inner", [], [helper.make_tensor_value_info("unused", TensorProto.FLOAT, [4])]
            )
            node = helper.make_node("If", ["condition"], ["either"], then_branch=inner, else_branch=inner)
        graph.graph.node.append(node)
    model.write_bytes(graph.SerializeToString())
