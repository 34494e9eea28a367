"""The check of TensorRT's names finds what is missing, renamed, read-only or called otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from tools.check_tensorrt_api import STUB, faults, overloads, used_names

STUB_TEXT = """
class Flag(Enum):
    TF32 = ...
class Config:
    level: int
    @property
    def size(self) -> int: ...
    def set_pool(self, pool: Flag, size: int) -> None: ...
def start(flag: Flag = ...) -> bool: ...
"""
# As pybind11 documents a class's members.
REAL: dict[str, dict[str, Any]] = {
    "Flag": {"kind": "class", "doc": "", "settable": False},
    "Flag.TF32": {"kind": "value", "doc": "", "settable": False},
    "Config": {"kind": "class", "doc": "", "settable": False},
    "Config.level": {"kind": "property", "doc": "", "settable": True},
    "Config.size": {"kind": "property", "doc": "", "settable": False},
    "Config.set_pool": {
        "kind": "method",
        "doc": "set_pool(*args, **kwargs)\nOverloaded function.\n\n"
        "1. set_pool(self: trt.Config, name: str) -> None\n\n"
        "2. set_pool(self: trt.Config, pool: trt.Flag, size: typing.SupportsInt, map: dict[str, int] = {}) -> None\n",
        "settable": False,
    },
    "start": {"kind": "method", "doc": "start(flag: trt.Flag = <Flag.TF32: 0>) -> bool\n", "settable": False},
}


def test_everything_there_is_no_fault() -> None:
    assert faults(used_names(STUB_TEXT), REAL) == []


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("Flag.TF32", None, "Flag.TF32 is not there"),
        ("Config.level", {"settable": False}, "Config.level can't be set"),
        ("Config.size", {"kind": "method"}, "Config.size is a method, used as a property"),
        ("Config.set_pool", {"doc": "set_pool(self: C, pool: Flag) -> None"}, "Config.set_pool takes (pool)"),
        (
            "Config.set_pool",
            {"doc": "set_pool(self: C, kind: Flag, size: int) -> None"},
            "takes (kind, size)",
        ),
        ("Config.set_pool", {"doc": "set_pool(self: C, pool: str, size: int) -> None"}, "other types"),
        ("Config.set_pool", {"doc": "set_pool(self: C, pool: Flag, size: int, more: int) -> None"}, "more"),
        ("Config.set_pool", {"doc": "set_pool(self: C, pool: Flag, size: int) -> bool"}, "result"),
        ("Config.set_pool", {"doc": "no signature"}, "documents no signature"),
    ],
)
def test_each_kind_of_change_is_a_fault(name: str, change: dict[str, Any] | None, fault: str) -> None:
    names = {key: value for key, value in REAL.items() if key != name}
    if change is not None:
        names[name] = REAL[name] | change
    (found,) = faults(used_names(STUB_TEXT), names)
    assert fault in found


def test_overloads_split_at_outer_commas() -> None:
    (found,) = overloads("f", "f(self: A, x: dict[str, int], y: Tuple[int, int] = (1, 2)) -> List[int]")
    assert [one[0] for one in found.parameters] == ["x", "y"]
    assert [one[2] for one in found.parameters] == [True, False]


def test_the_stub_names_nothing_that_eleven_has_removed() -> None:
    paths = {one.path for one in used_names(STUB.read_text(encoding="utf-8"))}
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in paths
    assert not paths & {
        "BuilderFlag.FP16",
        "BuilderFlag.INT8",
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    }
