"""Bundles written by hand, whose models are small ONNX files: no run, no training, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.config.recipe import TaskConfig
from compactmtl.config.target import Target
from compactmtl.data.base import Preprocessing, Rule, Vector
from compactmtl.export.bundle import Bundle, write_bundle
from compactmtl.export.describe import input_record, output_records
from compactmtl.export.record import BundleInfo, BundleTask, Training
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.build import recorded_task
from tests.support.conv_onnx import SIZE, write_conv

LABELS = tuple("abcde")
AREAS = ("floor", "wall", "lamp", "door")


def conv_bundle(folder: Path, target: Target) -> Bundle:
    """Two tasks, `logits` (5 classes an image) and `map` (4 classes a pixel), on images of SIZE x SIZE."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_conv(folder / MODEL_FILE)
    images = Preprocessing(size=(SIZE, SIZE))
    return _write(folder, path, target, {"image": images}, named=False)


def several_bundle(folder: Path, target: Target) -> Bundle:
    """The same outputs of four pictures `a` to `d` and two vectors `u` and `v`, which are made alike: only names tell them apart."""
    folder.mkdir(parents=True, exist_ok=True)
    images, numbers = Preprocessing(size=(SIZE, SIZE)), Vector((1.0, 20.0, 0.0), (0.5, 4.0, 1.0))
    rules: dict[str, Rule] = {**dict.fromkeys("abcd", images), **dict.fromkeys("uv", numbers)}
    path = _write_several(folder / MODEL_FILE, rules)
    return _write(folder, path, target, rules, named=True)


def _write_several(path: Path, rules: Mapping[str, Rule]) -> Path:
    """Logits of all pictures' mean colors and all numbers, and a map of the first picture."""
    rng = np.random.default_rng(0)
    nodes, parts, inputs = [], [], []
    for name, rule in rules.items():
        vector = isinstance(rule, Vector)
        shape: list[str | int | None] = ["batch", 3] if vector else ["batch", 3, SIZE, SIZE]
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        if not vector:
            nodes.append(helper.make_node("GlobalAveragePool", [name], [f"{name}.pooled"]))
            nodes.append(helper.make_node("Flatten", [f"{name}.pooled"], [f"{name}.flat"]))
        parts.append(name if vector else f"{name}.flat")
    first = next(iter(rules))
    nodes += [
        helper.make_node("Concat", parts, ["all"], axis=1),
        helper.make_node("MatMul", ["all", "head"], ["logits"]),
        helper.make_node("Conv", [first, "map.weight"], ["map"]),
    ]
    sizes = {"head": (3 * len(rules), len(LABELS)), "map.weight": (len(AREAS), 3, 1, 1)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), name)
        for name, size in sizes.items()
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)]),
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", len(AREAS), SIZE, SIZE]),
    ]
    graph = helper.make_graph(nodes, "several", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def _write(folder: Path, path: Path, target: Target, rules: Mapping[str, Rule], *, named: bool) -> Bundle:
    kinds = {
        "logits": ("classification", "accuracy", TargetSpec("class", classes=LABELS)),
        "map": ("segmentation", "miou", TargetSpec("mask", classes=AREAS)),
    }
    tasks = {
        name: BundleTask(
            kind=kind,
            primary=primary,
            dense=name == "map",
            channels=len(spec.classes),
            config=TaskConfig.model_validate({"kind": kind}),
            spec=spec,
        )
        for name, (kind, primary, spec) in kinds.items()
    }
    images = next(rule for rule in rules.values() if isinstance(rule, Preprocessing))
    info = BundleInfo(
        run="by-hand",
        compact=False,
        target_name="by-hand",
        target=target,
        model=MODEL_FILE,
        files={MODEL_FILE: sha256_file(path)},
        inputs=tuple(
            input_record(
                name,
                ("batch", 3) if isinstance(rule, Vector) else ("batch", 3, SIZE, SIZE),
                "float32",
                rule,
                baked=False,
            )
            for name, rule in rules.items()
        ),
        outputs=output_records(
            {"logits": ("batch", 5), "map": ("batch", 4, SIZE, SIZE)},
            dict.fromkeys(kinds, "float32"),
            {name: recorded_task(name, one.config, one.spec, one.channels) for name, one in tasks.items()},
            {},
        ),
        training=Training(tasks=tasks, preprocessing=images, inputs=dict(rules) if named else {}),
        recipe_sha256="0" * 64,
        plan_sha256=None,
        versions={},
        created="",
    )
    return write_bundle(folder, info)


def with_inputs(info: BundleInfo, rules: Mapping[str, Rule]) -> BundleInfo:
    """What bundle.json would say of a model that takes other inputs, each made by its rule."""
    inputs = tuple(
        input_record(
            name,
            ("batch", rule.channels)
            if isinstance(rule, Vector)
            else ("batch", rule.channels, rule.size[0], rule.size[1]),
            "float32",
            rule,
            baked=False,
        )
        for name, rule in rules.items()
    )
    first = next(rule for rule in rules.values() if isinstance(rule, Preprocessing))
    training = info.training.model_copy(update={"inputs": dict(rules), "preprocessing": first})
    return info.model_copy(update={"inputs": inputs, "training": training})
