"""bundle.json: what it says of inputs and outputs, its schema, and the reading of what older versions wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compactmtl.backends.targets import load_target
from compactmtl.data.base import Preprocessing
from compactmtl.errors import ArtifactError
from compactmtl.export.bundle import Bundle
from compactmtl.export.describe import input_record, output_record
from compactmtl.export.record import BundleInfo, schema_text
from compactmtl.export.script import SCHEMA, source
from compactmtl.tasks.registry import task_kinds
from tests.support.bundles import conv_bundle
from tests.support.task_kinds import usual_task


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return conv_bundle(tmp_path / "bundle", load_target("onnxruntime-cpu"))


def as_format_1(info: BundleInfo) -> dict[str, Any]:
    """The same bundle as the versions before format 2 wrote it."""
    values = info.model_dump(mode="json")
    for key in ("schema_file", "runtime", "golden"):
        values.pop(key)
    values |= {"version": 1, **values.pop("training")}
    for tensor in (*values["inputs"], *values["outputs"]):
        for key in set(tensor) - {"name", "shape", "dtype"}:
            del tensor[key]
    return values


def test_the_shipped_schema_is_that_of_the_code() -> None:
    mend = "write compactmtl.export.record.schema_text() to compactmtl/export/in_bundle/bundle.schema.json"
    assert source(SCHEMA) == schema_text(), mend


def test_a_bundle_names_the_schema_that_lies_in_it(bundle: Bundle) -> None:
    written = json.loads((bundle.path / "bundle.json").read_text(encoding="utf-8"))
    assert json.loads((bundle.path / written["$schema"]).read_text(encoding="utf-8"))[
        "properties"
    ].keys() >= set(written)


def test_the_text_is_read_back_whatever_its_names_hold(bundle: Bundle) -> None:
    odd = bundle.info.outputs[0].model_copy(update={"classes": ('a "quoted", [', "b\n,\\", "ü]", "{")})
    info = bundle.info.model_copy(update={"outputs": (odd,)})
    assert BundleInfo.model_validate(json.loads(info.text())) == info
    assert '"shape": ["batch", 5]' in info.text()


@pytest.mark.parametrize("kind", task_kinds())
def test_every_kind_says_what_its_numbers_are(kind: str) -> None:
    task = usual_task(kind)
    shape = (1, task.channels, 8, 8) if task.dense else (1, task.channels)
    record = output_record("it", shape, "float32", task, None)
    assert record.values != "raw"
    assert len(record.axes) == len(shape)
    assert record.decode is not None and record.decode.how and record.decode.gives
    assert record.unit in record.decode.gives
    assert len(record.colors) == len(record.classes)


def test_a_value_in_its_unit_leaves_nothing_to_apply() -> None:
    record = output_record("age", (1, 1), "float32", usual_task("regression"), None)
    assert (record.values, record.unit) == ("value", "years")
    assert '"mean"' not in record.model_dump_json() and '"std"' not in record.model_dump_json()


@pytest.mark.parametrize(
    ("after", "values", "axes", "op"),
    [
        ("argmax", "class index", ("batch", "height", "width"), "none"),
        ("softmax", "probabilities", ("batch", "class", "height", "width"), "argmax"),
    ],
)
def test_what_the_model_file_does_is_not_left_to_do(
    after: str, values: str, axes: tuple[str, ...], op: str
) -> None:
    shape = (1, 8, 8) if after == "argmax" else (1, 3, 8, 8)
    record = output_record("it", shape, "float32", usual_task("segmentation"), after)
    assert (record.values, record.axes, record.in_model) == (values, axes, after)
    assert record.decode is not None and record.decode.op == op


def test_probabilities_of_labels_are_held_against_one_half() -> None:
    record = output_record("it", (1, 3), "float32", usual_task("multilabel"), "sigmoid")
    assert record.decode is not None and record.decode.threshold == 0.5


def test_a_mean_stands_there_only_where_the_program_has_to_apply_it() -> None:
    images = Preprocessing(size=(8, 12), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.5))
    plain = input_record("image", (1, 3, 8, 12), "float32", images, baked=False)
    assert plain.normalize is not None and plain.normalize.mean == images.mean
    assert list(plain.range or ()) == [-2, 2]
    baked = input_record("image", ("batch", "height", "width", 3), "uint8", images, baked=True)
    assert list(baked.range or ()) == [0, 255] and baked.normalize is None
    assert "0.5" not in baked.model_dump_json()
    assert baked.resize is not None and not baked.resize.fixed
    assert plain.resize is not None and plain.resize.fixed and plain.resize.width == 12


def test_format_1_is_read_as_the_same(bundle: Bundle) -> None:
    (bundle.path / "bundle.json").write_text(json.dumps(as_format_1(bundle.info)))
    opened = Bundle.open(bundle.path)
    assert opened.info == bundle.info
    assert list(opened.tasks) == ["logits", "map"]


def test_format_1_with_a_kind_of_the_users_own_imports_nothing(bundle: Bundle) -> None:
    old = as_format_1(bundle.info)
    old["tasks"]["map"] |= {"kind": "no.such:Module", "config": {"kind": "no.such:Module"}}
    (bundle.path / "bundle.json").write_text(json.dumps(old))
    logits, other = Bundle.open(bundle.path).info.outputs
    assert logits.values == "logits"
    assert other.values == "raw" and other.decode is None


def test_a_normalization_that_nothing_can_do_is_named_as_damage(bundle: Bundle) -> None:
    said = json.loads((bundle.path / "bundle.json").read_text())
    said["training"]["preprocessing"]["std"] = [0.2, 0, 0.2]
    (bundle.path / "bundle.json").write_text(json.dumps(said))
    with pytest.raises(ArtifactError, match=r"bundle\.json: training\.preprocessing.*std 0\.2, 0, 0\.2"):
        Bundle.open(bundle.path)


def test_damage_in_format_1_is_named(bundle: Bundle) -> None:
    old = as_format_1(bundle.info)
    del old["preprocessing"]
    (bundle.path / "bundle.json").write_text(json.dumps(old))
    with pytest.raises(ArtifactError, match=r"bundle\.json: preprocessing: Field required"):
        Bundle.open(bundle.path)
