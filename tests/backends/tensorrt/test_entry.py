"""The TensorRT backend against a fake with the real names: the sequence of calls, and everything that it refuses."""

from __future__ import annotations

import enum
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compactmtl.backends import get_backend
from compactmtl.backends.tensorrt.engine import (
    EngineDamagedError,
    EngineError,
    EngineGpuError,
    EngineModelError,
    EngineVersionError,
    engine_path,
    facts_path,
)
from compactmtl.backends.tensorrt.options import ShapeRange, TensorRTConfig, tensorrt_config
from compactmtl.backends.tensorrt.parse import EngineBuildError
from compactmtl.backends.tensorrt.runner import TensorRTRunner
from compactmtl.backends.tensorrt.shapes import shape_range
from compactmtl.backends.tensorrt.types import PrecisionMismatchError
from compactmtl.config import UntrustedError, trusting
from compactmtl.config.target import LatencyConfig, OnnxConfig, Target
from compactmtl.errors import MISSING, ArtifactError, ConfigError, MissingDependencyError
from tests.support.fake_tensorrt import Fake, install
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx

TARGET = Target(backend="tensorrt", latency=LatencyConfig(batch=2))
BACKEND = get_backend("tensorrt")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    return install(monkeypatch, tmp_path / "cache")


@pytest.fixture
def module() -> TwoHeads:
    return TwoHeads().eval()


@pytest.fixture
def model(tmp_path: Path, module: TwoHeads) -> Path:
    return write_onnx(tmp_path / "model.onnx", module)


def options(**values: object) -> Target:
    return TARGET.model_copy(update={"tensorrt": TensorRTConfig.model_validate(values)})


def image(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((batch, WIDTH)).astype(np.float32)


def test_outputs_are_those_of_the_model_at_each_batch_and_run(
    fake: Fake, model: Path, module: TwoHeads
) -> None:
    with BACKEND.open(model, TARGET) as runner:
        first = runner.run({"image": image(2)})
        kept = {name: array.copy() for name, array in first.items()}
        for batch in (2, 3, 1):
            found = runner.run({"image": image(batch, batch)})
            expected = module(torch.from_numpy(image(batch, batch)))
            for name, tensor in expected.items():
                # float32 sums of six products in another order
                np.testing.assert_allclose(found[name], tensor.detach().numpy(), rtol=1e-5, atol=1e-5)
        for name, array in kept.items():
            np.testing.assert_array_equal(first[name], array)  # later runs don't write into earlier answers


def test_build_configures_everything_that_the_target_says(fake: Fake, model: Path, tmp_path: Path) -> None:
    target = options(
        optimization_level=5,
        workspace_mib=64,
        refit=True,
        version_compatible=True,
        hardware="ampere_plus",
        aux_streams=0,
        max_batch=4,
        timing_cache=str(tmp_path / "times"),
    )
    files = BACKEND.build(model, target)
    assert [file.name for file in files] == ["model.engine", "model.engine.json", "model.layers.json"]
    assert fake.flags == {"REFIT", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}  # TF32 is cleared
    config = fake.config
    assert config.builder_optimization_level == 5
    assert config.profiling_verbosity is fake.module.ProfilingVerbosity.DETAILED
    assert config.hardware_compatibility_level is fake.module.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.max_aux_streams == 0
    assert fake.profile == {"image": ((1, WIDTH), (2, WIDTH), (4, WIDTH))}
    assert fake.calls == [
        "plugins",
        "strongly typed",
        f"WORKSPACE {64 << 20}",
        "profile",
        "build",
        "deserialize",
    ]
    assert (tmp_path / "times").read_bytes() == b"times"
    facts = json.loads(facts_path(files[0]).read_text())
    assert facts["gpu"] == "Fake GPU" and facts["compute_capability"] == "8.6"
    assert facts["types"] == "2 of 2 convolutions and matrix products seen in the graph's type"


def test_a_built_engine_is_loaded_and_not_built_again(fake: Fake, model: Path) -> None:
    BACKEND.build(model, TARGET)
    fake.calls.clear()
    with BACKEND.open(model, TARGET) as runner:
        runner.run({"image": image(2)})
        assert runner.describe().precision == "fp32"
    assert "build" not in fake.calls


def test_timing_cache_is_used_again_and_one_from_elsewhere_is_replaced(fake: Fake, model: Path) -> None:
    BACKEND.build(model, TARGET)
    BACKEND.build(model, TARGET)
    assert fake.caches == [b"", b"times"]
    fake.accepts_cache = False
    BACKEND.build(model, TARGET)
    assert fake.caches[2:] == [b"times", b""]


def test_parser_and_builder_are_quoted(fake: Fake, model: Path) -> None:
    fake.parses = False
    with pytest.raises(EngineBuildError, match=r"(?s)can't parse.*node_7 \(Einsum\): no importer"):
        BACKEND.open(model, TARGET)
    fake.parses, fake.builds = True, False
    with pytest.raises(EngineBuildError, match=r"(?s)can't build.*error: no kernel fits"):
        BACKEND.open(model, TARGET)


def test_a_batch_beyond_the_profile_is_refused(fake: Fake, model: Path) -> None:
    with (
        BACKEND.open(model, options(max_batch=3)) as runner,
        pytest.raises(ArtifactError, match=r"doesn't take shape \(4, 6\)"),
    ):
        runner.run({"image": image(4)})


def test_cuda_graph_is_recorded_after_a_first_run_a_shape(fake: Fake, model: Path) -> None:
    with BACKEND.open(model, TARGET) as runner:
        fake.calls.clear()
        for batch in (2, 2, 1):
            runner.run({"image": image(batch)})
    assert fake.calls == ["execute"] * 5  # 3 runs, and 1 before each of 2 recordings
    with BACKEND.open(model, options(cuda_graph=False)) as runner:
        fake.calls.clear()
        runner.run({"image": image(2)})
    assert fake.calls == ["execute"]


def test_phases_and_layers_are_timed(fake: Fake, model: Path) -> None:
    with BACKEND.open(model, TARGET) as runner:
        assert isinstance(runner, TensorRTRunner)
        phases = runner.timed({"image": image(2)})
        assert (phases.copy_in_ms, phases.compute_ms, phases.copy_out_ms) == (1.0, 1.0, 1.0)
        layer, *_ = runner.layer_times({"image": image(2)}, 3)
        assert (layer.name, layer.operator, layer.milliseconds, layer.precision) == (
            "zeta + relu_of_zeta",
            "CaskConvolution",
            0.5,
            "fp32",
        )
        assert runner.device_bytes == 4096


def edit_facts(model: Path, **changes: object) -> None:
    path = facts_path(engine_path(model))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tensorrt": "10.12.0.36"}, EngineVersionError, r"built by TensorRT 10\.12\.0\.36; this is 10\.16"),
        ({"tensorrt": "11.0.0.1", "version_compatible": True}, EngineVersionError, "later ones of its major"),
        (
            {"tensorrt": "10.20.0.1", "version_compatible": True},
            EngineVersionError,
            "later ones of its major",
        ),
        ({"gpu": "Other GPU"}, EngineGpuError, r"built for Other GPU .* this is Fake GPU \(8\.6\)"),
        ({"compute_capability": "9.0", "hardware": "same_compute_capability"}, EngineGpuError, "9.0"),
        ({"onnx_sha256": "0" * 64}, EngineModelError, "from another model file"),
        ({"settings_sha256": "0" * 64}, EngineModelError, "with other settings"),
        ({"engine_sha256": "0" * 64}, EngineDamagedError, "its hash is off"),
        ({"version": 3}, EngineDamagedError, "is damaged"),
    ],
)
def test_an_engine_from_elsewhere_is_refused_before_it_is_deserialized(
    fake: Fake, model: Path, changes: dict[str, object], error: type[EngineError], message: str
) -> None:
    BACKEND.build(model, TARGET)
    edit_facts(model, **changes)
    fake.calls.clear()
    with pytest.raises(error, match=message):
        BACKEND.open(model, TARGET)
    assert fake.calls == []


def test_an_engine_without_facts_is_refused(fake: Fake, model: Path) -> None:
    BACKEND.build(model, TARGET)
    facts_path(engine_path(model)).unlink()
    with pytest.raises(EngineDamagedError, match="nobody knows what it is"):
        BACKEND.open(model, TARGET)


def test_compatible_engines_run_elsewhere(fake: Fake, model: Path, tmp_path: Path) -> None:
    library = tmp_path / "lean.so"
    library.touch()
    target = options(version_compatible=True, hardware="same_compute_capability", lean_runtime=str(library))
    BACKEND.build(model, target)
    edit_facts(model, tensorrt="10.13.0.35", gpu="Other GPU")
    with trusting(), BACKEND.open(model, target) as runner:
        runner.run({"image": image(2)})
    assert f"lean runtime {library}" in fake.calls
    fake.calls.clear()
    with pytest.raises(UntrustedError, match=r"lean\.so is a library"):
        BACKEND.open(model, target)
    assert not [call for call in fake.calls if "lean" in call]
    library.unlink()
    with trusting(), pytest.raises(ConfigError, match="there is no file"):
        BACKEND.open(model, target)
    with pytest.raises(ConfigError, match="carries no runtime"):
        BACKEND.open(
            model,
            target.with_own({"tensorrt": target.own["tensorrt"].model_copy(update={"lean_runtime": None})}),
        )


@pytest.mark.parametrize("schema", [10, 11])
def test_layers_of_another_type_fail_the_build(fake: Fake, model: Path, schema: int) -> None:
    fake.schema = schema
    fake.shown_types = lambda node, kind: "float16" if node == "alpha" else kind
    with pytest.raises(PrecisionMismatchError, match="alpha is float32 in the graph and touches float16"):
        BACKEND.build(model, TARGET)


def test_a_graph_without_the_asked_precision_fails_the_build(fake: Fake, model: Path) -> None:
    with pytest.raises(PrecisionMismatchError, match=r"fp16 was asked for, and all .* are float32"):
        BACKEND.build(model, TARGET.model_copy(update={"precision": "fp16"}))


def test_every_missing_piece_is_named(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(
        "compactmtl.backends.tensorrt.backend.cuda_device", lambda: (None, "no NVIDIA driver: gone")
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    found = BACKEND.availability(TARGET)
    assert not found.available
    for word in ("no NVIDIA driver", "tensorrt", "built without CUDA"):
        assert word in found.reason
    with pytest.raises(MissingDependencyError) as caught:
        BACKEND.open(model, TARGET)
    assert caught.value.exit_code == MISSING


def test_a_tensorrt_below_the_floor_is_missing(fake: Fake) -> None:
    fake.module.__version__ = "10.2.0.1"
    assert "too old: 10.3 or later" in BACKEND.availability(TARGET).reason
    fake.module.__version__ = "10.3.0"
    assert BACKEND.availability(TARGET).available


def test_a_hardware_level_that_a_version_lacks_is_named(fake: Fake, model: Path) -> None:
    fake.module.HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"])  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"tensorrt\.hardware.* does not know same_compute_capability"):
        BACKEND.build(model, options(hardware="same_compute_capability"))
    assert BACKEND.build(model, options(hardware="ampere_plus"))


def test_an_interrupted_build_ends_as_one_and_later_ones_work(fake: Fake, model: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    fake.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        BACKEND.build(model, TARGET)
    assert signal.getsignal(signal.SIGINT) is before
    assert not engine_path(model).exists()
    fake.interrupts = False
    assert BACKEND.build(model, TARGET)


def test_a_network_that_is_parsed_in_another_type_fails_the_build(fake: Fake, model: Path) -> None:
    fake.parsed_types = lambda node, kind: "float16" if node == "alpha" else kind
    with pytest.raises(
        PrecisionMismatchError, match="alpha is float32 in the graph and float16 in the parsed"
    ):
        BACKEND.build(model, TARGET)
    assert "build" not in fake.calls


def test_facts_of_the_first_version_are_read(fake: Fake, model: Path) -> None:
    BACKEND.build(model, TARGET)
    path = facts_path(engine_path(model))
    old = json.loads(path.read_text())
    for key in ("compute", "parsed_types", "build_peak_mib"):
        del old[key]
    path.write_text(json.dumps(old | {"version": 1}))
    with BACKEND.open(model, TARGET) as runner:
        assert runner.run({"image": image(2)})


def test_shapes_of_free_dimensions() -> None:
    config = TensorRTConfig(max_batch=8)
    assert shape_range("image", (2, 3, 4), config, 2) is None
    assert shape_range("image", (-1, 3), config, 2) == ShapeRange(min=(1, 3), opt=(2, 3), max=(8, 3))
    with pytest.raises(ConfigError, match="free dimensions"):
        shape_range("image", (-1, 3, -1), config, 2)
    shapes = {"image": {"min": [1, 3, 4], "opt": [2, 3, 8], "max": [4, 3, 16]}}
    bounded = TensorRTConfig.model_validate({"shapes": shapes})
    assert shape_range("image", (-1, 3, -1), bounded, 2) == bounded.shapes["image"]
    with pytest.raises(ConfigError, match="change only dimensions that are free"):
        shape_range("image", (-1, 3, 8), bounded, 2)


def test_dynamic_target_is_the_default_profile() -> None:
    target = Target(backend="tensorrt", onnx=OnnxConfig(dynamic_batch=True))
    found = shape_range("image", (-1, 3), tensorrt_config(target), target.latency.batch)
    assert found == ShapeRange(min=(1, 3), opt=(1, 3), max=(8, 3))
