"""A provider of ONNX Runtime from a package of its own: registered once, and each missing piece named with exit code 3."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from compactmtl.backends import get_backend, load_target
from compactmtl.backends.device import KitError
from compactmtl.backends.driver import CudaDevice
from compactmtl.backends.onnxruntime import kit, links, plugin
from compactmtl.backends.onnxruntime.kit import OnnxRuntimeOnDevice
from compactmtl.errors import MISSING, MissingDependencyError
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx

TARGET = load_target("onnxruntime-tensorrt-rtx")
BACKEND = get_backend("onnxruntime")
CPU = "CPUExecutionProvider"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The provider's package, with a GPU; its library is one that ONNX Runtime can't load."""
    module = ModuleType(plugin.PACKAGE)
    module.__spec__ = importlib.machinery.ModuleSpec(plugin.PACKAGE, None)
    module.get_ep_name = lambda: plugin.RTX  # type: ignore[attr-defined]
    module.get_library_path = lambda: "/no/such/library.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, plugin.PACKAGE, module)
    device = CudaDevice("Some GPU", "8.9", 8 << 30, "13.0")
    monkeypatch.setattr(plugin, "cuda_device", lambda: (device, ""))
    return module


def test_the_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, plugin.PACKAGE, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = BACKEND.availability(TARGET)
    assert f"{plugin.PACKAGE} is not installed" in found.reason
    assert "compactmtl[onnxruntime-tensorrt-rtx]" in found.hint


def test_without_a_gpu_it_exits_with_three(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plugin, "cuda_device", lambda: (None, "no NVIDIA driver: gone"))
    with pytest.raises(MissingDependencyError, match="needs a GPU: no NVIDIA driver") as caught:
        BACKEND.open(write_onnx(tmp_path / "m.onnx", TwoHeads().eval()), TARGET)
    assert caught.value.exit_code == MISSING


def test_what_onnxruntime_says_of_a_library_that_does_not_load_is_quoted(package: ModuleType) -> None:
    found = BACKEND.availability(TARGET)
    assert "does not register" in found.reason and "/no/such/library.so" in found.reason


def test_an_onnxruntime_that_takes_no_plugins_is_too_old(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    assert "takes no providers from other packages" in BACKEND.availability(TARGET).reason


def test_a_gpu_that_the_provider_does_not_take_is_named(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda name, path: None)
    assert "Some GPU (8.9)" in BACKEND.availability(TARGET).reason


def test_a_session_is_opened_on_the_devices_of_a_provider(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real call, with the one provider whose devices are on every machine."""
    monkeypatch.setitem(plugin.PLUGINS, CPU, plugin.PACKAGE)
    asked: list[Any] = []
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda *names: asked.append(names)
    )
    path = write_onnx(tmp_path / "m.onnx", TwoHeads().eval())
    with BACKEND.open(path, TARGET.with_own({"provider": CPU})) as runner:
        assert runner.describe().provider == CPU
        assert set(runner.run({"image": np.zeros((2, WIDTH), np.float32)})) == {"zeta", "alpha"}
    assert asked == []  # its devices are known already


def test_links_are_read_from_the_files_of_an_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\0libnvinfer.so.10\0")
    (tmp_path / "libtensorrt_rtx.so.1.7.1").touch()
    (tmp_path / "libtensorrt_rtx.so.1").touch()
    spec = importlib.machinery.ModuleSpec("any", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    build = ModuleType("build")
    build.cuda_version = "12.8"  # type: ignore[attr-defined]
    monkeypatch.setattr(links, "_build_info", lambda: build)
    versions = {"onnxruntime-gpu": "1.30.0", f"{links.PLUGIN}-cu13": "0.5.0"}
    monkeypatch.setattr(links, "package_version", versions.get)
    assert [(one.package, one.library, one.version) for one in links.links()] == [
        ("onnxruntime 1.30.0", "CUDA", "12.8"),
        ("onnxruntime 1.30.0", "TensorRT", "10"),
        (f"{links.PLUGIN}-cu13 0.5.0", "CUDA", "13"),
        (f"{links.PLUGIN}-cu13 0.5.0", "TensorRT-RTX", "1.7.1"),
    ]


# -- a bundle's program and a device kit ---------------------------------------------------------------------------------


@pytest.fixture
def on_cpu(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The provider's library is loaded; what it serves are the CPU's devices, the only ones that are on every machine."""
    registered: list[tuple[str, str]] = []
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda *names: registered.append(names)
    )
    devices = [one for one in onnxruntime.get_ep_devices() if one.ep_name == CPU]
    served = [SimpleNamespace(ep_name=plugin.RTX, real=one) for one in devices]
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: served if registered else [])

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_provider_for_devices(self, given: list[Any], options: dict[str, str]) -> None:
            super().add_provider_for_devices([one.real for one in given], options)

        def add_session_config_entry(self, key: str, value: str) -> None:
            if key != "session.disable_cpu_ep_fallback":  # the CPU is what it falls back to
                super().add_session_config_entry(key, value)

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def get_providers(self) -> list[str]:
            return [plugin.RTX]

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return registered


def test_a_bundles_program_registers_the_provider(
    on_cpu: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part: dict[str, Any] = {}
    exec(compile(BACKEND.in_bundle(TARGET), "part", "exec"), part)
    path = write_onnx(tmp_path / "m.onnx", TwoHeads().eval())
    run = part["open_model"](path, {"provider": plugin.RTX, "threads": 1})
    assert set(run({"image": np.zeros((2, WIDTH), np.float32)})) == {"zeta", "alpha"}
    assert on_cpu == [(plugin.RTX, "/no/such/library.so")]
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    with pytest.raises(RuntimeError, match="finds no GPU"):
        part["open_model"](path, {"provider": plugin.RTX, "threads": 1})


def test_a_bundle_names_all_that_pip_installs() -> None:
    assert BACKEND.wheel(TARGET).split() == ["onnxruntime-ep-nv-tensorrt-rtx", "onnxruntime"]


def kit_runtime() -> OnnxRuntimeOnDevice:
    found = BACKEND.device_kit(TARGET, {"image": (2, WIDTH)})
    assert found is not None and found.runtime is OnnxRuntimeOnDevice
    return OnnxRuntimeOnDevice(json.loads(json.dumps(dict(found.settings))))  # as the device reads them


def test_a_kit_registers_the_provider(on_cpu: list[tuple[str, str]], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", TwoHeads().eval(), batch=2)
    image = np.zeros((2, WIDTH), np.float32)
    model = kit_runtime().open(path, {"image": image}, tmp_path)
    assert set(model.run({"image": image})) == {"zeta", "alpha"}
    assert model.facts()["provider"] == plugin.RTX and model.facts()["threads"] is None
    assert on_cpu == [(plugin.RTX, "/no/such/library.so")]  # once


def test_a_kit_names_what_its_provider_lacks(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, plugin.PACKAGE, None)
    monkeypatch.setattr(kit, "cuda_device", lambda: (None, "no NVIDIA driver: gone"))
    missing = kit_runtime().missing()
    assert missing[0][0] == "no NVIDIA driver: gone"
    assert "can't be imported" in missing[1][0] and "onnxruntime-ep-nv-tensorrt-rtx" in missing[1][1]


def test_a_kit_on_a_machine_that_the_provider_does_not_take(
    on_cpu: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    with pytest.raises(KitError, match="takes none of this machine's devices"):
        kit_runtime().open(
            write_onnx(tmp_path / "m.onnx", TwoHeads().eval(), batch=2),
            {"image": np.zeros((2, WIDTH), np.float32)},
            tmp_path,
        )
