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
def test_recipes_and_targets_lie_where_the_lookup_reads_them(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "compactmtl/_bundled/recipes/scenes/dense.yaml" in names
    assert "compactmtl/_bundled/export/onnxruntime-cpu.yaml" in names


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", ["tests/test_x.py", "compactmtl/_bundled/data/face.jpg", "compactmtl/weights.safetensors"]
)
def test_what_does_not_belong_is_caught(wheel: Path, tmp_path: Path, extra: str) -> None:
    copy = tmp_path / wheel.name
    copy.write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr(extra, "x")
    assert any(extra in fault for fault in faults(copy))
