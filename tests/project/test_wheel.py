import base64
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.check_wheel import build, faults


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_carries_the_package_recipes_and_targets_and_nothing_else(wheel: Path) -> None:
    assert faults(wheel) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["recipes", "show", "scenes/dense"], "scenes/dense"),
        (["targets", "show", "onnxruntime-cpu"], "onnxruntime-cpu"),
    ],
)
def test_an_installed_package_finds_its_bundled_copies(
    wheel: Path, tmp_path: Path, words: list[str], name: str
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, "-m", "compactmtl", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "_bundled" in shown.splitlines()[0]
    assert shown.splitlines()[0].endswith(f"{name}.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        "tests/test_x.py",
        "compactmtl/_bundled/data/face.jpg",
        "compactmtl/weights.safetensors",
        "compactmtl/faces.json",
    ],
)
def test_what_does_not_belong_is_caught(wheel: Path, tmp_path: Path, extra: str) -> None:
    copy = tmp_path / wheel.name
    copy.write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr(extra, "x")
    assert any(extra in fault for fault in faults(copy))


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [os.urandom(50_000), os.urandom(20_000), b"WEIGHTS = '" + base64.b64encode(os.urandom(15_000)) + b"'\n"],
    ids=["large", "bytes", "text"],
)
def test_weights_in_a_file_of_another_kind_are_caught(wheel: Path, tmp_path: Path, data: bytes) -> None:
    copy = tmp_path / wheel.name
    copy.write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr("compactmtl/weights.py", data)
    assert any("more than" in fault for fault in faults(copy))
