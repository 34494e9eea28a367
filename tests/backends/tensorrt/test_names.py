"""What programs on devices take of TensorRT is in the stub, which is held against the bindings of every version.

mypy holds the package itself to the stub. kit.py and a bundle's infer.py take TensorRT and TensorRT for RTX, under the name
that is there, so mypy sees nothing of what they take.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

import pytest

from compactmtl.backends import get_backend
from compactmtl.backends.targets import load_target
from compactmtl.backends.tensorrt import kit
from tools.check_tensorrt_api import STUB, used_names

MODULES = {"trt", "tensorrt", "module"}  # how the programs call TensorRT's module
OWNERS = {  # how they call its objects
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "running": "IExecutionContext",
    "tensor": "ITensor",
}


def taken(source: str) -> Iterator[str]:
    """Every name of TensorRT's that a program takes, as a path such as Builder.create_network."""

    def path(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return "" if node.id in MODULES else OWNERS.get(node.id)
        if isinstance(node, ast.Call):
            made = path(node.func)
            return made if made and "." not in made else None  # what else a call gives is not known
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return "" if node.attr in MODULES else OWNERS.get(node.attr)
        owner = path(node.value)
        return None if owner is None else f"{owner}.{node.attr}".strip(".")

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (found := path(node)) and found not in OWNERS.values():
            yield found


def unknown(source: str) -> set[str]:
    """Those that the stub lacks."""
    text = STUB.read_text(encoding="utf-8")
    known = {one.path for one in used_names(text)}
    bases = {
        node.name: [ast.unparse(base) for base in node.bases]
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
    }

    def has(path: str) -> bool:
        owner, _, member = path.rpartition(".")
        return path in known or any(f"{base}.{member}" in known for base in bases.get(owner, []))

    return {path for path in taken(source) if not has(path)}


def programs() -> dict[str, str]:
    found = {}
    for name in ("tensorrt", "tensorrt-rtx"):
        target, backend = load_target(f"{name}-fp32"), get_backend(name)
        device = backend.device_kit(target, {"image": (1, 3, 8, 8)})
        assert device is not None
        assert device.runtime is kit.TensorRtOnDevice
        found[f"{name}, kit"] = inspect.getsource(kit)
        text = backend.in_bundle(target)
        found[f"{name}, bundle"] = text.replace("tensorrt_rtx_bindings as tensorrt", "tensorrt")
    return found


@pytest.mark.parametrize(("name", "source"), programs().items(), ids=programs())
def test_a_program_takes_what_the_stub_names(name: str, source: str) -> None:
    assert len(set(taken(source))) > 20
    assert unknown(source) == set()


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("tensorrt.nptype(kind)", "nptype"),
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16"),
        ("self.context.execute_v2([])", "IExecutionContext.execute_v2"),
        ("self.trt.Runtime(logger).load(b'')", "Runtime.load"),
        ("builder.max_batch_size = 1", "Builder.max_batch_size"),
    ],
)
def test_what_the_stub_lacks_is_found(line: str, path: str) -> None:
    assert unknown(line) == {path}
