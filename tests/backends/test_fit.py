"""Which installed packages fit each other and the driver."""

from __future__ import annotations

import pytest

from compactmtl.backends import get_backend
from compactmtl.backends.base import Link
from compactmtl.backends.fit import clashes, told

ORT = Link("onnxruntime 1.30", "TensorRT", "10")
TEN, ELEVEN = Link("tensorrt 10.3.0", "TensorRT", "10.3.0"), Link("tensorrt 11.4.0", "TensorRT", "11.4.0")


def test_two_majors_of_tensorrt_do_not_fit_and_one_does() -> None:
    (found,) = clashes([ORT, ELEVEN], None)
    assert "onnxruntime 1.30 needs TensorRT 10; tensorrt 11.4.0 needs TensorRT 11.4.0" in found
    assert list(clashes([ORT, TEN], None)) == []
    assert list(clashes([ELEVEN, Link("rtx 1.7", "TensorRT-RTX", "1.7")], None)) == []


def test_a_driver_takes_what_is_not_newer_than_itself() -> None:
    needs = [Link("torch 2.14", "CUDA", "13.0"), Link("old 1", "CUDA", "12")]
    (found,) = clashes(needs, "12.4")
    assert found.startswith("torch 2.14 needs CUDA 13.0, the driver takes 12.4")
    assert list(clashes(needs, "13.0")) == list(clashes(needs, None)) == []


def test_each_package_is_told_once() -> None:
    cuda = Link("tensorrt 10.3.0", "CUDA", "12")
    assert list(told([TEN, cuda, ORT])) == ["tensorrt 10.3.0: CUDA 12", "onnxruntime 1.30: TensorRT 10"]


def test_installed_distributions_name_their_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"tensorrt": "11.4.0", "tensorrt-cu13-bindings": "11.4.0"}
    monkeypatch.setattr("compactmtl.backends.tensorrt.backend.package_version", versions.get)
    found = [(one.library, one.version) for one in get_backend("tensorrt").links()]
    assert found == [("TensorRT", "11.4.0"), ("TensorRT", "11.4.0"), ("CUDA", "13")]
    assert list(get_backend("tensorrt-rtx").links()) == []
