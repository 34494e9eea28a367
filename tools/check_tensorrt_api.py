"""Hold every name and signature of TensorRT that this project uses against the bindings of several versions.

python -m tools.check_tensorrt_api [--stub FILE] [--cache FOLDER] [VERSION ...]

What is used is what tools/stubs/tensorrt names: mypy sees to it that the code uses nothing else. A comment in the stub says
what only some versions have. Each version's bindings wheel is installed once into a folder of the cache. TensorRT's own libraries aren't needed: an empty stand-in with the
few C functions that the bindings link is compiled (`cc`) and put beside them, so that the real Python classes load.
Nothing of TensorRT runs; that a name is there says nothing about what it does.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compactmtl.data.cache import user_cache

STUB = Path(__file__).parent / "stubs" / "tensorrt" / "__init__.pyi"
PLAIN, RTX = "TensorRT", "TensorRT-RTX"
# The floor of the extra `tensorrt`, which JetPack 6 has, that of DriveOS 7, others in between, the last 10 and the last 11
# that were looked at; and TensorRT for RTX, whose version is written with its name.
WHEELS = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.7.0": "tensorrt-cu12-bindings",
    "10.10.0.31": "tensorrt-cu12-bindings",
    "10.12.0.36": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu12-bindings",
    "rtx-1.7.1.116": "tensorrt-rtx-cu13-bindings",
}
MODULES = {PLAIN: "tensorrt_bindings", RTX: "tensorrt_rtx_bindings"}
LINKED = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
UNCHECKABLE = ("__buffer__",)  # no attribute before Python 3.12

# Runs beside the bindings alone: for each asked name what it is, and its documentation, where pybind11 writes signatures.
_DUMP = """
import json, sys
sys.path.insert(0, sys.argv[1])
import importlib
root = importlib.import_module(sys.argv[3])
found = {"__version__": {"kind": "value", "doc": "", "settable": False}}
for path in json.loads(sys.argv[2]):
    owner, value = None, root
    for part in path.split("."):
        if part == "__iter__" and not hasattr(value, part):
            part = "__getitem__"  # the older protocol, which iter() takes too
        owner, value = value, getattr(value, part, None)
        if value is None:
            break
    if value is None:
        continue
    kind = "value"
    if isinstance(value, type):
        kind = "class"
    elif isinstance(value, property):
        kind = "property"
    elif callable(value):
        kind = "method"
    found[path] = {"kind": kind, "doc": value.__doc__ or "",
                   "settable": kind == "property" and value.fset is not None}
print(json.dumps({"version": root.__version__, "names": found}))
"""


@dataclass(frozen=True)
class Used:
    """One name of the stub: what kind of thing it is and, for a method, its parameters and result."""

    path: str
    kind: str  # class, value, property, method
    settable: bool = False
    parameters: tuple[tuple[str, str, bool], ...] = ()  # name, type, required
    returns: str = ""
    since: tuple[int, ...] = ()  # the first version that has it
    only: str = ""  # the library that has it, where that is one alone

    def is_in(self, library: str, version: str) -> bool:
        """Whether a version is said to have it. TensorRT-RTX, which is younger, has what all of TensorRT 10 has."""
        if self.only:
            return self.only == library
        release = tuple(int(part) for part in version.split(".")[:2])
        return library != PLAIN or release >= self.since


@dataclass(frozen=True)
class Overload:
    """One signature as pybind11 documents it."""

    parameters: tuple[tuple[str, str, bool], ...]
    returns: str = field(default="")


def used_names(stub: str) -> list[Used]:
    """Everything that the text of a stub names, with what its comments say of versions."""
    return list(_members(ast.parse(stub).body, "", stub.splitlines()))


def _members(body: list[ast.stmt], prefix: str, lines: list[str]) -> Iterator[Used]:
    for node in body:
        inner = (
            [] if not isinstance(node, ast.ClassDef) else _members(node.body, f"{prefix}{node.name}.", lines)
        )
        last = node.lineno if isinstance(node, ast.ClassDef) else node.end_lineno or node.lineno
        _, _, comment = lines[last - 1].partition("  # ")
        since = re.match(r"since (\d+)\.(\d+)", comment)
        only = re.match(r"only (\S+)", comment)
        for one in _own(node, prefix):
            yield dataclasses.replace(
                one,
                since=tuple(map(int, since.groups())) if since else (),
                only=only.group(1) if only else "",
            )
        yield from inner


def _own(node: ast.stmt, prefix: str) -> Iterator[Used]:
    if isinstance(node, ast.ClassDef):
        yield Used(prefix + node.name, "class")
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        yield Used(prefix + node.targets[0].id, "value")
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        kind = "property" if prefix else "value"
        yield Used(prefix + node.target.id, kind, settable=bool(prefix))
    elif isinstance(node, ast.FunctionDef):
        if any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
            yield Used(prefix + node.name, "property")
        else:
            yield _method(node, prefix)


def _method(node: ast.FunctionDef, prefix: str) -> Used:
    arguments = [one for one in node.args.args if one.arg != "self"]
    optional = len(node.args.defaults)
    parameters = tuple(
        (one.arg, ast.unparse(one.annotation) if one.annotation else "", index < len(arguments) - optional)
        for index, one in enumerate(arguments)
    )
    return Used(
        prefix + node.name, "method", False, parameters, ast.unparse(node.returns) if node.returns else ""
    )


def overloads(name: str, doc: str) -> list[Overload]:
    """The signatures in a docstring of pybind11; the one that stands for several is left out."""
    pattern = re.compile(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)$", re.MULTILINE)
    found = []
    for arguments, returns in pattern.findall(doc):
        parts = [part.strip() for part in _split(arguments)]
        if parts and parts[0].split(":")[0] in ("self", "arg0"):
            parts = parts[1:]
        found.append(Overload(tuple(_parameter(part) for part in parts), returns.strip()))
    return found


def _split(arguments: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(arguments):
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append(arguments[start:index])
            start = index + 1
    return [*parts, arguments[start:]] if arguments else []


def _parameter(text: str) -> tuple[str, str, bool]:
    name, _, rest = text.partition(":")
    kind, equals, _ = rest.partition(" = ")
    return name.strip(), kind.strip(), not equals


def faults(used: list[Used], names: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the bindings, as dumped, lack or have otherwise; empty where all of it holds."""
    found = []
    for one in used:
        member = one.path.rpartition(".")[2]
        if member in UNCHECKABLE:
            continue
        if one.path not in names:
            found.append(f"{one.path} is not there")
            continue
        real = names[one.path]
        if real["kind"] != one.kind:
            found.append(f"{one.path} is a {real['kind']}, used as a {one.kind}")
        elif one.kind == "property" and one.settable and not real["settable"]:
            found.append(f"{one.path} can't be set")
        elif one.kind == "method" and not member.startswith("__") | (member == "__init__"):
            found += _signature_faults(one, overloads(member, str(real["doc"])))
    return found


def _signature_faults(one: Used, real: list[Overload]) -> list[str]:
    if not real:
        return [f"{one.path} documents no signature"]
    if any(_accepts(overload, one) for overload in real):
        return []
    shown = " or ".join(f"({', '.join(name for name, _, _ in overload.parameters)})" for overload in real)
    return [f"{one.path} takes {shown} with other types, names or result than it is used with"]


def _accepts(overload: Overload, one: Used) -> bool:
    """Whether a call as the stub has it fits: same names in order, types that match, nothing required left out."""
    ours, theirs = one.parameters, overload.parameters
    if len(ours) > len(theirs) or any(required for _, _, required in theirs[len(ours) :]):
        return False
    pairs = list(zip(ours, theirs, strict=False))
    if any(a[0] != b[0] and not re.fullmatch(r"arg\d+", b[0]) for a, b in pairs):
        return False
    return all(_same(a[1], b[1]) for a, b in pairs) and _same(one.returns, overload.returns)


_TYPES = {
    "int": ("int", "SupportsInt"),
    "float": ("float", "SupportsFloat"),
    "str": ("str",),
    "bool": ("bool",),
    "bytes": ("buffer", "Buffer"),
    "None": ("None",),
    "Sequence": ("Dims", "Sequence", "tuple"),
    "tuple": ("tuple",),
    "list": ("list", "List"),
}


def _same(ours: str, theirs: str) -> bool:
    """Whether the outermost type of a stub is the bindings' one; what may be None there is not documented."""
    name = re.split(r"[\[ |]", ours)[0].rpartition(".")[2]
    if name == "object":
        return True
    words = set(re.findall(r"\w+", theirs))
    accepted = _TYPES.get(name, (name, f"I{name}"))
    return bool(words & set(accepted))


def library_of(version: str) -> str:
    """Which library a version of `WHEELS` is of."""
    return RTX if version.startswith("rtx-") else PLAIN


def install(version: str, folder: Path) -> None:
    """Put the bindings of one version and stand-ins for the libraries that they link into `folder`, once."""
    done = folder / "complete"
    if done.exists():
        return
    library = library_of(version)
    wheel = f"{WHEELS.get(version, 'tensorrt-cu12-bindings')}=={version.removeprefix('rtx-')}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), wheel]
    subprocess.run([*command, "--disable-pip-version-check"], check=True)
    package = folder / MODULES[library]
    binary = next(package.glob("tensorrt*.so")).read_bytes()
    source = folder / "standin.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in LINKED))
    standin = folder / "standin.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        sys.exit("a C compiler is needed to make the stand-in libraries: install gcc or clang")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(standin), str(source)], check=True)
    for name in set(re.findall(rb"lib(?:nv|tensorrt)\w+\.so\.\d+", binary)):
        shutil.copy(standin, package / name.decode())
    done.touch()


def dump(folder: Path | None, paths: list[str], library: str = PLAIN) -> dict[str, Any]:
    """What the bindings in `folder`, or those that are installed, say of these names, asked in a process of their own."""
    first = "" if folder is None else str(folder)
    command = [sys.executable, "-I", "-c", _DUMP, first, json.dumps(paths), MODULES[library]]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def main(argv: list[str] | None = None) -> int:
    """Check the versions; 1 where any lacks what is used."""
    parser = argparse.ArgumentParser(
        description="hold the names of TensorRT that are used against its bindings"
    )
    parser.add_argument("versions", nargs="*", help=f"default: {' '.join(WHEELS)}")
    parser.add_argument("--stub", type=Path, default=STUB, help="the stub that names what is used")
    parser.add_argument(
        "--cache", type=Path, help="folder that bindings are installed into and found again in"
    )
    args = parser.parse_args(argv)
    used = used_names(args.stub.read_text(encoding="utf-8"))
    failed = False
    cache = args.cache or user_cache() / "tensorrt-bindings"
    for version in args.versions or WHEELS:
        library = library_of(version)
        install(version, cache / version)
        found = dump(cache / version, [one.path for one in used], library)
        asked = [one for one in used if one.is_in(library, found["version"])]
        absent = [one for one in used if one not in asked]
        wrong = faults(asked, found["names"])
        wrong += [
            f"{one.path} is there: the stub says it is not" for one in absent if one.path in found["names"]
        ]
        failed = failed or bool(wrong)
        checked = sum(one.path.rpartition(".")[2] not in UNCHECKABLE for one in asked)
        verdict = f"{len(wrong)} faults" if wrong else "all there, with the signatures that are used"
        print(f"{library} {found['version']}: {checked} names: {verdict}")
        for line in wrong:
            print(f"  {line}")
        for one in absent:
            if not one.only:
                print(f"  without {one.path}, as the stub says")
    for one in used:
        if one.path.rpartition(".")[2] in UNCHECKABLE:
            print(f"not checkable from Python: {one.path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
