import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# gpu, tensorrt and onnxruntime-tensorrt-rtx need hardware that the tested versions were not recorded on.
TESTED = PROJECT["dependencies"] + [
    word
    for extra in ("cpu", "openvino", "baselines", "datasets", "docs", "tensorrt-rtx", "dev")
    for word in EXTRAS[extra]
]


def pins() -> dict[str, str]:
    lines = (ROOT / "tools" / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("text", TESTED)
def test_every_tested_requirement_has_a_pin_within_its_bound(text: str) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_every_lower_bound_has_its_reason_beside_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    bounds = [line for line in lines if re.search(r'"[\w-]+>=\d', line)]
    assert len(bounds) >= len(TESTED)
    assert [line for line in bounds if "#" not in line] == []


def test_the_core_asks_for_neither_onnxruntime() -> None:
    core = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert not core & {"onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-libs"}


def test_plain_make_shows_every_target_with_its_help() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"make ([\w-]+) ", shown) == [
        "help",
        "setup",
        "demo",
        "test",
        "test-fast",
        "docs",
        "check",
    ]
