"""A run's way to a lower precision: calibration on its own training images, gates, and what the bundle says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from compactmtl.backends import get_backend
from compactmtl.config.precision import Int8Config
from compactmtl.config.target import AccuracyConfig, LatencyConfig, OnnxConfig, ParityConfig, Target
from compactmtl.errors import ConfigError
from compactmtl.export import Bundle, Predictor, export_run
from compactmtl.export.artifact import calibration_feeds, interface_of
from compactmtl.train import Run
from tests.support.real_runs import SCENES, write_run

TARGET = Target(
    backend="onnxruntime",
    precision="int8",
    int8=Int8Config(samples=4, search=3),
    latency=LatencyConfig(batch=2, warmup=1, repeats=3),
    accuracy=AccuracyConfig(samples=3, export_drop=0.5),  # an untrained model's metrics jump
)


def test_calibration_images_are_the_same_each_time_and_spread_evenly(trained: Run) -> None:
    interface = interface_of(trained, TARGET)
    one, two = (calibration_feeds(trained, TARGET, interface, 2) for _ in range(2))
    assert [feed["image"].shape for feed in one] == [(2, 3, 16, 24)] * 2
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first["image"], second["image"])
    images = np.concatenate([feed["image"] for feed in one])
    assert len({image.tobytes() for image in images}) == 4  # all of the four training images
    single = TARGET.model_copy(update={"precision": "fp32"})
    assert calibration_feeds(trained, single, interface, 2) == []


@pytest.mark.slow  # exports three models
def test_int8_pipeline_with_the_interface_baked_in(compacted: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(compacted.path, tmp_path / "run"))
    onnx = OnnxConfig(preprocess=True, postprocess={"segmentation": "argmax"})
    found = export_run(run, "int8", TARGET.model_copy(update={"onnx": onnx}))
    bundle = Bundle.open(run.path / "export" / "int8")
    record = bundle.info.precision
    assert record is not None
    assert record.lowered > 5
    assert record.samples == 4
    assert record.held is found.passed
    assert 1 <= len(record.search) <= 3
    assert list(found.latency.stats) == ["dense", "compact", "dense fp32", "compact fp32"]
    assert found.latency.stats["compact"].layers["int8"] >= 0.8 * record.lowered
    assert all(found.latency.stats[f"{name} fp32"].precision == "fp32" for name in ("dense", "compact"))
    assert {("compact", "dense fp32"), ("compact", "compact fp32")} <= {
        (one.name, one.against) for one in found.latency.speeds
    }
    assert not [gate for gate in found.gates if gate.gate == "parity"]
    assert [(one.name, one.shape, one.dtype) for one in bundle.info.inputs] == [
        ("image", (2, 16, 24, 3), "uint8")
    ]
    assert [(one.name, one.dtype) for one in bundle.info.outputs] == [
        ("segmentation", "int64"),
        ("depth", "float32"),
    ]
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 24), dtype=np.uint8)
    with Predictor.open(bundle.path) as deployed, Predictor.open(run.path) as live:
        pairs = zip(deployed.predict(image), live.predict(image), strict=True)
        for one, other in pairs:
            assert one.value.shape == other.value.shape


@pytest.mark.slow  # exports three models
def test_fp16_pipeline_in_openvino_with_a_free_batch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    # OpenVINO refuses to average a window of 2 over a side of 1, which smaller images come to
    run = write_run(tmp_path / "run", SCENES.replace("[16, 24]", "[32, 32]"))
    target = Target(
        backend="openvino",
        precision="fp16",
        onnx=OnnxConfig(dynamic_batch=True, postprocess={"segmentation": "softmax"}),
        # an untrained model's depth varies by less than 1 % of its value, of which float16 has 11 bits
        parity=ParityConfig(tasks={"depth": 0.2}),
        latency=LatencyConfig(batch=2, warmup=1, repeats=3),
        accuracy=AccuracyConfig(samples=3, export_drop=0.1),  # an untrained model's classes tie
    )
    if not get_backend("openvino").availability(target).available:
        pytest.skip("this processor has no fp16")
    found = export_run(run, "half", target)
    assert [gate.passed for gate in found.gates if gate.gate == "parity"] == [True, True]
    assert set(found.accuracy.by_batch) == {1, 3}
    assert found.latency.stats["model"].precision == "fp16"
    assert found.latency.stats["model fp32"].precision == "fp32"


@pytest.mark.parametrize(
    ("postprocess", "message"),
    [({"depth": "argmax"}, "can't follow a task of kind depth"), ({"deep": "argmax"}, "which is no task")],
)
def test_postprocessing_that_does_not_fit_is_refused(
    trained: Run, postprocess: dict[str, str], message: str
) -> None:
    onnx = OnnxConfig.model_validate({"postprocess": postprocess})
    with pytest.raises(ConfigError, match=message):
        export_run(trained, "t", TARGET.model_copy(update={"onnx": onnx}))
