"""What this machine is, without loading a framework."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from compactmtl.backends import machine


@pytest.mark.slow
def test_importing_the_backends_loads_no_framework() -> None:
    code = (
        "import sys, compactmtl.backends.versions as v, compactmtl.backends.machine as m; v.package_versions(); m.cpu_flags();"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'timm'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture
def _fresh_gpus() -> object:
    machine.nvidia_gpus.cache_clear()
    yield
    machine.nvidia_gpus.cache_clear()


@pytest.mark.usefixtures("_fresh_gpus")
class TestGpus:
    def test_no_driver_is_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        assert machine.nvidia_gpus() == ((), "no NVIDIA driver: nvidia-smi is not on the PATH")

    def test_driver_that_fails_is_a_reason(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
    ) -> None:
        script = tmp_path / "nvidia-smi"  # type: ignore[operator]
        script.write_text("#!/bin/sh\necho 'driver/library version mismatch' >&2\nexit 18\n")
        script.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(script))
        gpus, reason = machine.nvidia_gpus()
        assert gpus == ()
        assert "version mismatch" in reason

    def test_gpus_are_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory) -> None:
        script = tmp_path / "nvidia-smi"  # type: ignore[operator]
        script.write_text("#!/bin/sh\necho 'NVIDIA L4, 580.1'\n")
        script.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(script))
        assert machine.nvidia_gpus() == (("NVIDIA L4, 580.1",), "")
