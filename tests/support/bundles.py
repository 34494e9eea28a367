"""A bundle written by hand, whose model is a small convolutional ONNX file: no run, no training, no torch."""

from __future__ import annotations

from pathlib import Path

from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.config.recipe import TaskConfig
from compactmtl.config.target import Target
from compactmtl.data.base import Preprocessing
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
    images = Preprocessing(size=(SIZE, SIZE))
    info = BundleInfo(
        run="by-hand",
        compact=False,
        target_name="by-hand",
        target=target,
        model=MODEL_FILE,
        files={MODEL_FILE: sha256_file(path)},
        inputs=(input_record("image", ("batch", 3, SIZE, SIZE), "float32", images, baked=False),),
        outputs=output_records(
            {"logits": ("batch", 5), "map": ("batch", 4, SIZE, SIZE)},
            dict.fromkeys(kinds, "float32"),
            {name: recorded_task(name, one.config, one.spec, one.channels) for name, one in tasks.items()},
            {},
        ),
        training=Training(tasks=tasks, preprocessing=images),
        recipe_sha256="0" * 64,
        plan_sha256=None,
        versions={},
        created="",
    )
    return write_bundle(folder, info)
