"""A device kit's TensorRT, with a fake of its module and of the CUDA driver: no GPU ran it.

TensorRT for RTX's real parser and builder build an engine by the same code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from compactmtl.backends import get_backend
from compactmtl.backends.device import KitError
from compactmtl.backends.tensorrt.kit import TensorRtModel, TensorRtOnDevice
from compactmtl.backends.tensorrt.kit_cuda import Cuda
from compactmtl.backends.tensorrt.types import PrecisionMismatchError
from compactmtl.config.target import LatencyConfig, Target
from tests.support.fake_cuda import FakeDriver
from tests.support.fake_tensorrt import GPU, Fake, install
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx
from tests.support.rtx import rtx, target, write_product

IMAGE = np.random.default_rng(0).standard_normal((2, WIDTH)).astype(np.float32)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    monkeypatch.setattr("compactmtl.backends.tensorrt.kit.cuda_device", lambda: (GPU, ""))
    return install(monkeypatch, tmp_path / "cache")


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return write_onnx(folder / "net.onnx", TwoHeads(), batch=2)


def runtime_of(driver: FakeDriver, **options: Any) -> TensorRtOnDevice:
    chosen = Target(backend="tensorrt", latency=LatencyConfig(batch=2)).with_own({"tensorrt": options})
    kit = get_backend("tensorrt").device_kit(chosen, {"image": (2, WIDTH)})
    assert kit is not None
    settings = json.loads(json.dumps(dict(kit.settings)))  # as the device reads them
    return TensorRtOnDevice(settings, Cuda(driver))


def opened(runtime: TensorRtOnDevice, model: Path, folder: Path) -> TensorRtModel:
    found = runtime.open(model, {"image": IMAGE}, folder)
    assert isinstance(found, TensorRtModel)
    return found


def expected(model: Path) -> list[Any]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, {"image": IMAGE})
    return outputs


def test_an_engine_is_built_run_and_freed(
    fake: Fake, driver: FakeDriver, model: Path, tmp_path: Path
) -> None:
    runtime = runtime_of(driver, cuda_graph=False)
    assert runtime.missing() == []
    engine = opened(runtime, model, tmp_path / "built")
    assert (engine.input_names, engine.output_names) == (("image",), ("zeta", "alpha"))
    for _ in range(2):
        found = engine.run({"image": IMAGE})
        for output, array in zip(expected(model), found.values(), strict=True):
            np.testing.assert_array_equal(output, array)
    assert "TF32" not in fake.flags
    assert fake.calls.count("strongly typed") == 1
    facts = engine.facts()
    assert facts["provider"] == "CUDA stream"
    assert facts["build_seconds"] > 0
    engine.close()
    assert driver.memory == {}


def test_steps_are_named_after_the_graph_and_timed_by_the_profiler(
    fake: Fake, driver: FakeDriver, model: Path, tmp_path: Path
) -> None:
    engine = opened(runtime_of(driver), model, tmp_path)
    assert engine.layer_times({"image": IMAGE}, 4) == [("zeta", 0.5)]
    assert fake.calls.count("execute") >= 4 + 5  # and those that are not counted


def test_copies_and_compute_are_timed_apart(
    fake: Fake, driver: FakeDriver, model: Path, tmp_path: Path
) -> None:
    engine = opened(runtime_of(driver, cuda_graph=False), model, tmp_path)
    assert engine.phases({"image": IMAGE}) == (1.0, 1.0, 1.0)
    assert driver.calls.count("cuEventDestroy_v2") == 4


def test_a_cuda_graph_is_recorded_once_and_replayed(
    fake: Fake, driver: FakeDriver, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = TensorRtModel._enqueue

    def queued(self: TensorRtModel) -> None:
        """While it is captured nothing runs, as in the real driver."""
        if driver.capturing is None:
            enqueue(self)
        else:
            driver.capturing.append(lambda: enqueue(self))

    monkeypatch.setattr(TensorRtModel, "_enqueue", queued)
    engine = opened(runtime_of(driver), model, tmp_path)
    for _ in range(3):
        found = engine.run({"image": IMAGE})
    np.testing.assert_array_equal(found["alpha"], expected(model)[1])
    assert driver.calls.count("cuGraphInstantiateWithFlags") == 1
    assert driver.calls.count("cuGraphLaunch") == 3
    assert fake.calls.count("execute") == 4  # once before the capture, which allocates
    assert engine.facts()["provider"] == "CUDA graph"


def test_an_engine_is_built_again_where_anything_changed(
    fake: Fake, driver: FakeDriver, model: Path, tmp_path: Path
) -> None:
    built = tmp_path / "built"
    opened(runtime_of(driver), model, built)
    kept = opened(runtime_of(driver), model, built)
    assert fake.calls.count("build") == 1
    assert kept.facts()["build_seconds"] is None
    opened(runtime_of(driver, optimization_level=5), model, built)
    assert fake.calls.count("build") == 2
    engine = built / "net.engine"
    engine.write_bytes(engine.read_bytes() + b"x")
    opened(runtime_of(driver, optimization_level=5), model, built)
    assert fake.calls.count("build") == 3
    fake.module.__version__ = "10.3.0"
    opened(runtime_of(driver, optimization_level=5), model, built)
    assert fake.calls.count("build") == 4


def test_what_the_parser_and_the_builder_say_is_told(
    fake: Fake, driver: FakeDriver, model: Path, tmp_path: Path
) -> None:
    fake.parses = False
    with pytest.raises(KitError, match=r"node node_7 \(Einsum\): no importer") as parsing:
        opened(runtime_of(driver), model, tmp_path)
    fake.parses, fake.builds = True, False
    with pytest.raises(KitError, match="no kernel fits") as building:
        opened(runtime_of(driver), model, tmp_path)
    assert (parsing.value.code, building.value.code) == (4, 4)


def test_a_version_that_is_too_old_and_a_module_that_is_not_there_are_named(
    fake: Fake, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of(driver)
    fake.module.__version__ = "10.2.0.19"
    ((what, mend),) = runtime.missing()
    assert what == "TensorRT 10.2.0.19 is too old"
    assert "10.3" in mend
    runtime.settings["modules"] = ["tensorrt_rtx"]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    ((what, mend),) = runtime.missing()
    assert "tensorrt_rtx can't be imported" in what
    assert "JetPack" in mend
    monkeypatch.setattr("compactmtl.backends.tensorrt.kit.cuda_device", lambda: (None, "no NVIDIA GPU"))
    runtime._cuda = None
    assert next(one for one, _ in runtime.missing()) == "no NVIDIA GPU"


def test_a_kit_s_settings_name_no_other_code(fake: Fake, driver: FakeDriver) -> None:
    runtime = runtime_of(driver)
    runtime.settings["modules"] = ["antigravity"]
    with pytest.raises(KitError, match="name the module antigravity, which is none of tensorrt"):
        runtime.missing()
    assert "antigravity" not in sys.modules


def test_a_gpu_whose_memory_is_full_is_an_error_of_the_machine(
    fake: Fake, driver: FakeDriver, model: Path, tmp_path: Path
) -> None:
    engine = opened(runtime_of(driver), model, tmp_path)
    driver.fails = "cuMemAlloc_v2"
    with pytest.raises(KitError, match="cuMemAlloc_v2 answers with error 2") as caught:
        engine.run({"image": IMAGE})
    assert caught.value.code == 3


def test_free_dimensions_get_the_targets_profile(
    fake: Fake, driver: FakeDriver, model: Path, tmp_path: Path
) -> None:
    chosen = Target(backend="tensorrt", latency=LatencyConfig(batch=2)).with_own(
        {"tensorrt": {"max_batch": 4}}
    )
    kit = get_backend("tensorrt").device_kit(chosen, {"image": ("batch", WIDTH)})
    assert kit is not None
    runtime = TensorRtOnDevice(json.loads(json.dumps(dict(kit.settings))), Cuda(driver))
    opened(runtime, model, tmp_path)
    assert fake.profile == {"image": ((1, WIDTH), (2, WIDTH), (4, WIDTH))}


def test_the_inspectors_types_are_held_against_the_graph_at_home(
    fake: Fake, driver: FakeDriver, model: Path, tmp_path: Path
) -> None:
    backend, chosen = get_backend("tensorrt"), Target(backend="tensorrt")
    facts = opened(runtime_of(driver), model, tmp_path / "one").facts()
    assert backend.check_device(facts, model, chosen) == {"fp32": 2}
    fake.shown_types = lambda node, kind: "float16"
    facts = opened(runtime_of(driver), model, tmp_path / "two").facts()
    with pytest.raises(PrecisionMismatchError, match="another type than the graph gives"):
        backend.check_device(facts, model, chosen)


def test_the_real_builder_of_tensorrt_for_rtx_builds_a_kits_model(tmp_path: Path) -> None:
    """Ahead of time, for a capability: no GPU is here."""

    class Ahead(TensorRtOnDevice):
        def _configure(self, config: Any) -> None:
            super()._configure(config)
            config.num_compute_capabilities = 1
            config.set_compute_capability(self.trt.ComputeCapability.SM89, 0)

    kit = rtx().device_kit(target(), {"x": (1, 16, 8, 8)})
    assert kit is not None
    runtime = Ahead(json.loads(json.dumps(dict(kit.settings))))
    path = write_product(tmp_path / "net.onnx", "convolution", "fp32")
    assert len(runtime.build(path)) > 1000
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(KitError, match=r"TensorRT-RTX .* can't"):
        runtime.build(path)
