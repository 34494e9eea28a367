"""A bundle's infer.py on TensorRT: the engine is opened or built, and run by the driver's functions alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from compactmtl.backends.targets import load_target
from compactmtl.export.bundle import Bundle
from tests.export.test_in_bundle import golden_bundle
from tests.support.bundle_programs import program_of, run
from tests.support.fake_cuda import FakeDriver
from tests.support.fake_tensorrt import Fake, install


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    return install(monkeypatch, tmp_path / "cache")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: made)
    return made


@pytest.fixture
def bundle(fake: Fake, tmp_path: Path) -> Bundle:
    made = golden_bundle(tmp_path / "bundle", load_target("tensorrt-fp32"))
    fake.calls.clear()
    fake.stream = 0  # the programs of a bundle use the default stream
    return made


@pytest.fixture
def program(bundle: Bundle, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with program_of(bundle.path, monkeypatch) as module:
        yield module


def test_an_engine_is_built_where_there_is_none_and_agrees_with_the_golden_picture(
    program: ModuleType,
    fake: Fake,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(program, monkeypatch, "--check") == 0
    assert "logits: off by" in capsys.readouterr().out
    assert [one for one in fake.calls if one in ("build", "execute")] == ["build", "execute"]
    assert fake.profile["image"][0][0] == 1  # the batch was free
    assert "TF32" not in fake.flags  # float32 stays float32
    assert driver.memory == {}


def test_an_engine_that_lies_beside_the_model_is_not_built_again(
    program: ModuleType, bundle: Bundle, fake: Fake, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle.path / "model.engine").write_bytes(bundle.model_path.read_bytes())
    assert run(program, monkeypatch, "--check") == 0
    assert "build" not in fake.calls


def test_a_failing_driver_is_named(
    program: ModuleType, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.fails = "cuInit"
    with pytest.raises(SystemExit, match="cuInit failed with CUDA error 2"):
        run(program, monkeypatch, "--check")


def test_an_engine_of_another_gpu_is_named(
    program: ModuleType,
    bundle: Bundle,
    fake: Fake,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (bundle.path / "model.engine").write_bytes(b"of elsewhere")
    monkeypatch.setattr(fake.module.Runtime, "deserialize_cuda_engine", lambda self, serialized_engine: None)
    with pytest.raises(SystemExit, match="another GPU or version of TensorRT"):
        run(program, monkeypatch, "--check")
