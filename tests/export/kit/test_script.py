"""kit.py as one file: Python 3.8, the standard library, numpy and the runtime, and nothing that is not there."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator

import pytest

from compactmtl.backends import all_backends
from compactmtl.backends.base import Backend, DeviceKit
from compactmtl.config.target import Target
from compactmtl.export.kit import on_device, table_on_device
from compactmtl.export.kit.script import PYTHON, script
from tests.support import python38
from tests.support.python38 import later_than_38

SHAPES = {"image": (1, 3, 16, 24)}


def kits() -> Iterator[tuple[str, DeviceKit]]:
    for backend in all_backends():
        kit = kit_of(backend)
        if kit is not None:
            yield backend.name, kit


def kit_of(backend: Backend) -> DeviceKit | None:
    return backend.device_kit(Target(backend=backend.name), SHAPES)


KITS = dict(kits())


PROGRAMS = {"models": on_device, "table": table_on_device}


@pytest.fixture(params=[(name, program) for name in KITS for program in PROGRAMS])
def source(request: pytest.FixtureRequest) -> str:
    name, program = request.param
    return script(KITS[name].runtime, KITS[name].install, PROGRAMS[program])


def test_every_backend_that_opens_files_has_a_kit() -> None:
    assert set(KITS) == {backend.name for backend in all_backends() if backend.opens_files}


def test_the_oldest_python_is_the_one_that_is_tested() -> None:
    assert PYTHON == python38.PYTHON


def test_the_script_is_of_python_38(source: str) -> None:
    compile(source, "kit.py", "exec")
    assert later_than_38(source) == []


def test_it_needs_the_standard_library_numpy_and_the_runtime_alone(source: str) -> None:
    roots = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    foreign = roots - set(sys.stdlib_module_names) - {"numpy", "__future__"}
    # TensorRT's is imported by a name in the kit's settings; a provider of ONNX Runtime may be a package of its own
    assert foreign in (set(), {"openvino"}, {"onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx"})


def test_every_name_in_it_is_defined_in_it(source: str) -> None:
    tree = ast.parse(source)
    stored = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    known = stored | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            known |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            known.add(node.name)
    loaded = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert loaded <= known | {"__file__", "__name__"}


def test_parts_say_what_they_are_for(source: str) -> None:
    titles = [line for line in source.splitlines() if line.startswith("# --- ")]
    assert len(titles) >= 7
    assert not any("art of kit.py" in title for title in titles)
