"""Each layer's milliseconds by model, under one name whatever the runtime fused, and error maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compactmtl.backends import LayerTime
from compactmtl.report.export_figures import error_pictures, layer_of, layer_times
from compactmtl.verify.result import ErrorMap, GraphWork, LatencyResult, Measured
from compactmtl.verify.speed import subject_latency
from tests.support.synthetic_verification import stats, verification


def step(name: str, milliseconds: float) -> LayerTime:
    return LayerTime(name=name, operator="Conv", milliseconds=milliseconds)


def measured(**layers: tuple[LayerTime, ...] | None) -> dict[str, Measured]:
    return {name: Measured(megabytes=1.0, throughput={}, layers=some) for name, some in layers.items()}


@pytest.mark.parametrize(
    "name",
    [
        "layer1.conv",
        "layer1.conv+Relu_nchwc",
        "layer1.conv_token_12",
        "layer1.conv/WithoutBiases",
        "layer1.conv_quant",
    ],
)
def test_a_layer_has_one_name(name: str) -> None:
    assert layer_of(step(name, 1)) == "layer1.conv"


def test_steps_of_a_layer_add_up() -> None:
    dense = (step("a_nchwc", 1.0), step("a_quant", 0.5), step("b", 0.01))
    models, rows = layer_times(measured(dense=dense, compact=(step("a", 0.25), step("new", 3.0)), none=None))
    assert models == ["dense", "compact"]
    assert [(row.name, row.milliseconds) for row in rows] == [
        ("a", (1.5, 0.25)),
        ("b", (0.01, 0.0)),
        ("new", (0.0, 3.0)),
    ]


def test_a_kernel_that_is_named_after_the_network_s_output_is_its_layer_s() -> None:
    steps = (step("a", 1.0), step("act.Clip_nchwc", 2.0), step("Resize", 0.5), step("output", 4.0))
    places = (("kernel", "a"), ("kernel", "b"), ("resize", "b"), ("kernel", "fc"))
    work = GraphWork(layers=(), places=places, channel_step=16)
    dense = Measured(megabytes=1.0, throughput={}, layers=steps, work=work)
    _, rows = layer_times({"dense": dense, **measured(compact=(step("fc", 3.0),))})
    assert [(row.name, row.milliseconds) for row in rows] == [
        ("a", (1.0, 0.0)),
        ("b", (2.0, 0.0)),
        ("Resize", (0.5, 0.0)),
        ("fc", (4.0, 3.0)),
    ]


def test_nothing_timed_nothing_drawn() -> None:
    assert layer_times(measured(dense=None)) == ([], [])


def test_error_maps_are_drawn_and_a_missing_one_is_said_so(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(tmp_path / "0.png")
    maps = {
        name: ErrorMap(file=file, largest=0.5, relative=0.01)
        for name, file in (("a", "0.png"), ("b", "gone.png"))
    }
    there, gone = error_pictures(verification().model_copy(update={"error_maps": maps}), tmp_path)
    assert there.picture is not None
    assert there.picture.shape == (4, 6, 3)
    assert "5.0e-01" in there.caption
    assert gone.picture is None


@pytest.mark.parametrize(
    ("names", "subject"),
    [
        (("dense", "compact"), "compact"),
        (("dense", "compact", "compact fp32"), "compact"),
        (("model", "model fp32"), "model"),  # without a dense model the artifact is the reference
    ],
)
def test_an_artifact_is_not_taken_for_its_float32_form(names: tuple[str, ...], subject: str) -> None:
    latency = LatencyResult(
        reference=names[0],
        stats={name: stats(name, 1.0, 0) for name in names},
        speedup=dict.fromkeys(names, 1.0),
    )
    assert subject_latency(latency)[0] == subject
