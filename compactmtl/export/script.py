"""The programs of a bundle, which run it without compactmtl: infer.py and what it imports, put together from real modules.

Their sources are `in_bundle`, and the `in_bundle.py` of a backend. A bundle gets what its outputs and its runtime need.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Set
from importlib import resources

from compactmtl.artifacts.layout import BUNDLE_SCHEMA, INFER_SCRIPT
from compactmtl.backends import get_backend
from compactmtl.export.record import BundleInfo

MOST_LINES = 120  # of infer.py: a user is to read it. A runtime that takes more lies beside it.
SCHEMA = BUNDLE_SCHEMA  # a file of `in_bundle` too
ARRAYS_SCRIPT = "infer_arrays.py"  # infer.py of a model that takes arrays
INPUTS_SCRIPT = "infer_inputs.py"  # infer.py of a model of several inputs
SHARED, SHOW, PICTURE, PIXELS, SAMPLE, PANOPTIC, RUNTIME = (
    "shared",
    "show",
    "picture",
    "pixels",
    "sample",
    "panoptic",
    "runtime",
)
_OPERATION = re.compile(r' {8}"(\w+)": lambda: .*\n')
_HOME = "compactmtl.export.in_bundle"


def scripts(info: BundleInfo) -> dict[str, str]:
    """The programs by file name; none where the backend says no way to open a model without compactmtl.

    Each imports the standard library, numpy, Pillow, the bundle's runtime and each other alone.
    """
    backend = get_backend(info.target.backend)
    part = backend.in_bundle(info.target)
    if (
        not part
        or info.runtime is None
        or info.golden is None
        or any(one.decode is None for one in info.outputs)
    ):
        return {}
    operations = {one.decode.op for one in info.outputs if one.decode is not None}
    parts: tuple[str, ...] = ()
    if info.golden.inputs:
        program, parts = INPUTS_SCRIPT, (PICTURE, PIXELS, SAMPLE, SHOW)
    elif info.golden.picture is not None:
        program, parts = INFER_SCRIPT, (PICTURE, PIXELS, SHOW)
    else:
        program = ARRAYS_SCRIPT
    text = _beside(source(program))
    text = text.replace('and the runtime")', f'{info.runtime.package}")')
    text = text.replace("import numpy as np\n\n", "import numpy as np\n")
    files = {f"{SHARED}.py": _with_operations(source(f"{SHARED}.py"), operations)}
    files |= {f"{name}.py": _beside(source(f"{name}.py")) for name in parts}
    if PANOPTIC in operations:
        files[f"{PANOPTIC}.py"] = source(f"{PANOPTIC}.py")
    whole = _with_runtime(text, part)
    if len(whole.splitlines()) > MOST_LINES:
        whole = _open_model_from(text, f"    from {RUNTIME} import open_model\n")
        files[f"{RUNTIME}.py"] = part
    return {INFER_SCRIPT: whole, **files}


def source(name: str) -> str:
    """A file of `in_bundle`."""
    return (resources.files("compactmtl.export") / "in_bundle" / name).read_text(encoding="utf-8")


def _beside(text: str) -> str:
    """A program that imports the others of `in_bundle` from its own folder."""
    return re.sub(rf"from {re.escape(_HOME)}\.(\w+) import", r"from \1 import", text)


def _with_operations(text: str, operations: Set[str]) -> str:
    """The shared part with those operations of `decode` alone that the bundle's outputs need."""
    text = _beside(_OPERATION.sub(lambda match: match[0] if match[1] in operations else "", text))
    return text if PANOPTIC in operations else text.replace(f"from {PANOPTIC} import {PANOPTIC}\n\n", "")


def _with_runtime(text: str, part: str) -> str:
    """infer.py with the runtime's import among its imports and `open_model` before `main`."""
    tree = ast.parse(part)
    lines = part.splitlines(keepends=True)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    known = ast.parse(text)
    there = {ast.unparse(node) for node in ast.walk(known) if isinstance(node, ast.Import | ast.ImportFrom)}
    new = [ast.unparse(node) for node in imports if ast.unparse(node) not in there]
    body = "".join(lines[imports[-1].end_lineno :]).strip("\n")
    text = _open_model_from(text, "".join(f"    {line}\n" for line in new))
    return text.replace("\n\n\ndef main(", f"\n\n\n{body}\n\n\ndef main(")


def _open_model_from(text: str, imports: str) -> str:
    """infer.py with `imports` in place of the import of ONNX Runtime's part."""
    return re.sub(r"    from compactmtl\.backends\.\w+\.in_bundle import open_model\n", imports, text)
