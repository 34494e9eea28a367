"""The trtexec command: nothing is left to a default that differs between TensorRT 10 and 11."""

from __future__ import annotations

import shlex

import pytest

from compactmtl.backends import load_target
from compactmtl.backends.tensorrt.options import TensorRTConfig
from compactmtl.backends.tensorrt.trtexec import MAJORS, Major, script, trtexec
from compactmtl.config.target import LatencyConfig, Target

FREE = {"image": ("batch", 3, 32, 48)}
FIXED = {"image": (2, 3, 32, 48)}


def target(**options: object) -> Target:
    config = TensorRTConfig.model_validate(options)
    return Target(backend="tensorrt", tensorrt=config, latency=LatencyConfig(batch=2, repeats=70))


@pytest.mark.parametrize("major", MAJORS)
def test_what_is_said_of_both(major: Major) -> None:
    words = trtexec(target(), "model.onnx", FIXED, major, files={"image": "input.image.bin"})
    for word in (
        "--noTF32",
        "--profilingVerbosity=detailed",
        "--iterations=70",
        "--builderOptimizationLevel=3",
    ):
        assert word in words
    assert "--loadInputs=image:input.image.bin" in words
    assert not any(word.startswith(("--fp16", "--int8", "--best", "--minShapes")) for word in words)


def test_defaults_that_eleven_turned_around_are_written_out() -> None:
    ten, eleven = (trtexec(target(), "m.onnx", FIXED, major) for major in MAJORS)
    assert {"--stronglyTyped", "--useCudaGraph"} <= set(ten)
    assert {"--includeDataTransfers", "--noSpinWait"} <= set(eleven)
    assert not {"--stronglyTyped", "--noCudaGraph", "--useCudaGraph"} & set(eleven)
    ten, eleven = (trtexec(target(cuda_graph=False), "m.onnx", FIXED, major) for major in MAJORS)
    assert "--useCudaGraph" not in ten
    assert "--noCudaGraph" in eleven


def test_settings_of_the_engine_are_the_targets() -> None:
    given = target(
        workspace_mib=64,
        version_compatible=True,
        hardware="ampere_plus",
        refit=True,
        aux_streams=0,
        tf32=True,
        max_batch=4,
    )
    words = trtexec(given, "m.onnx", FREE, 11)
    for word in (
        "--memPoolSize=workspace:64M",
        "--versionCompatible",
        "--excludeLeanRuntime",
        "--hardwareCompatibilityLevel=ampere+",
        "--refit",
        "--maxAuxStreams=0",
        "--minShapes=image:1x3x32x48",
        "--optShapes=image:2x3x32x48",
        "--maxShapes=image:4x3x32x48",
        "--shapes=image:2x3x32x48",
    ):
        assert word in words
    assert "--noTF32" not in words


def test_the_script_is_the_command() -> None:
    words = trtexec(target(), "a model.onnx", FIXED, 10)
    text = script(words, 10)
    command = text.split('cd "$(dirname "$0")"\n')[1].replace("\\\n", "")
    assert shlex.split(command) == words


@pytest.mark.parametrize(
    "name", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-bf16", "tensorrt-int8", "jetson-orin-example"]
)
def test_bundled_targets_of_tensorrt(name: str) -> None:
    found = load_target(name)
    assert found.backend == "tensorrt"
    if found.precision == "int8":
        assert (found.int8.scheme, found.int8.symmetric, found.int8.layout) == ("s8s8", True, "inputs")
