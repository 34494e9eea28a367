"""The gate before user code: nothing runs without the user's word, and a refusal says what would have run."""

from __future__ import annotations

import ast
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from compactmtl.config import UntrustedError, trust, trusting
from compactmtl.errors import USAGE, ConfigError

PACKAGE = Path(trust.__file__).parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the Python path with a package whose every file leaves a mark when it runs."""
    folder = tmp_path / "strange"
    folder.mkdir()
    for name in ("__init__", "inner"):
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / name)!r} + '.ran', 'w').close()\nclass Thing: ...\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "strange"]:
        del sys.modules[name]


def ran(place: Path) -> list[str]:
    return sorted(path.stem for path in place.glob("*.ran"))


@pytest.mark.parametrize("name", ["strange:Thing", "strange.inner:Thing"])
def test_without_the_users_word_nothing_runs_and_the_place_is_told(place: Path, name: str) -> None:
    with pytest.raises(UntrustedError) as caught:
        trust.import_module(name, "data.name")
    assert ran(place) == []  # not even the package that the module lies in
    file = place / "strange" / ("__init__.py" if name.startswith("strange:") else "inner.py")
    assert str(file) in caught.value.message
    assert "data.name" in caught.value.message and "Thing" in caught.value.message
    assert "--trust" in caught.value.hint
    assert caught.value.exit_code == USAGE


def test_a_module_that_is_loaded_already_is_refused_too(place: Path) -> None:
    importlib.import_module("strange")
    with pytest.raises(UntrustedError):
        trust.import_module("strange:Thing", "data.name")


@pytest.mark.parametrize(("name", "told"), [("nowhere.at.all:Thing", "nowhere"), ("sys:path", "built-in")])
def test_what_has_no_file_is_told_as_such(name: str, told: str) -> None:
    with pytest.raises(UntrustedError, match=told):
        trust.import_module(name, "data.name")


def test_the_word_lets_it_run_and_ends_with_its_block(place: Path) -> None:
    with trusting():
        assert trust.import_module("strange.inner:Thing", "data.name").Thing
    assert ran(place) == ["__init__", "inner"]
    with pytest.raises(UntrustedError):
        trust.import_module("strange.inner:Thing", "data.name")


@pytest.mark.parametrize(
    "name", ["strange:Thing", "strange.inner:Thing", "strange.none:Thing", "nowhere.at:All"]
)
def test_the_file_of_a_module_is_found_without_running_anything(place: Path, name: str) -> None:
    files = {"strange:Thing": "__init__.py", "strange.inner:Thing": "inner.py"}
    expected = place / "strange" / files[name] if name in files else None
    assert trust.source_of(name, "model.factory") == expected
    assert ran(place) == []


def test_the_file_of_a_module_of_the_working_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only_here").mkdir()
    (tmp_path / "only_here" / "nets.py").touch()
    assert trust.source_of("only_here.nets:Net", "model.factory") == tmp_path / "only_here" / "nets.py"


def test_a_word_that_was_not_given_takes_none_back(place: Path) -> None:
    with trusting(), trusting(False):
        assert trust.is_trusted()
    with trusting(False):
        assert not trust.is_trusted()


def test_an_error_ends_the_word() -> None:
    with pytest.raises(ZeroDivisionError), trusting():
        _ = 1 / 0
    assert not trust.is_trusted()


def test_another_thread_is_trusted_with_nothing() -> None:
    found: list[bool] = []
    with trusting():
        thread = threading.Thread(target=lambda: found.append(trust.is_trusted()))
        thread.start()
        thread.join()
    assert found == [False]


@pytest.mark.parametrize("name", ["strange", "../x:Y", "a.b:", ":Thing", "a:b:c", "a-b:C", "a b:C", "a.:C"])
def test_other_names_are_no_classes(name: str) -> None:
    with trusting(), pytest.raises(ConfigError, match="does not name a class"):
        trust.import_module(name, "data.name")


def test_a_library_is_loaded_on_the_users_word_alone(tmp_path: Path) -> None:
    file = tmp_path / "lean.so"
    with pytest.raises(UntrustedError, match="no such file"):
        trust.library(file, "tensorrt.lean_runtime")
    file.touch()
    with pytest.raises(UntrustedError, match="runs its code"):
        trust.library(file, "tensorrt.lean_runtime")
    with trusting():
        assert trust.library(str(file), "tensorrt.lean_runtime") == file


# Where a module may be imported by a name that is not written there; each of these takes it from a list of its own.
OWN_NAMES = {
    "backends/registry.py",
    "backends/onnxruntime/links.py",
    "backends/onnxruntime/plugin.py",
    "backends/tensorrt/api.py",
    "backends/tensorrt/kit.py",
    "cli/main.py",
    "cli/demo.py",
    "cli/doctor.py",
    "data/datasets.py",
    "config/trust.py",
    "config/registry.py",
    "graph/rules/__init__.py",
}
# Where it is asked whether a package of a list of its own is there.
ASKED = {"models/packaged.py", "export/kit/script.py"}
# Where NVIDIA's driver is loaded, by the name that the system knows it under.
DRIVER = {"backends/tensorrt/in_bundle.py", "backends/tensorrt/kit_cuda.py"}
DRIVER_NAME = "'nvcuda.dll' if sys.platform == 'win32' else 'libcuda.so.1'"
# What runs code that a file holds, or loads a library.
BUILTINS = {"exec", "eval", "__import__"}
FORBIDDEN = {
    "run_path",
    "run_module",
    "spec_from_file_location",
    "CDLL",
    "LoadLibrary",
    "load_library",
    "register_custom_ops_library",
    "load_plugin",
    "unpack_archive",
    "extractall",
}


@pytest.mark.slow
def test_no_other_way_in() -> None:
    """A reading of the source: imports by a computed name are in the gate alone, and nothing loads a pickle."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            where = f"{name}:{node.lineno}: {called}"
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if called == "CDLL" and name in DRIVER and ast.unparse(node.args[0]) == DRIVER_NAME:
                continue
            # Python's own imports the packages that a module lies in, so it takes names of our own alone.
            computed = called == "find_spec" and not isinstance(node.args[0], ast.Constant)
            if (
                called in FORBIDDEN
                or (called == "import_module" and name not in OWN_NAMES and not _is_door(name, node))
                or (computed and name not in OWN_NAMES | ASKED)
            ):
                found.append(where)
            elif called == "load" and ast.unparse(node.func) == "torch.load":
                safe = keywords.get("weights_only")
                if not (isinstance(safe, ast.Constant) and safe.value is True):
                    found.append(where)
            elif "allow_pickle" in keywords:
                pickle = keywords["allow_pickle"]
                if not (isinstance(pickle, ast.Constant) and pickle.value is False):
                    found.append(where)
            elif (
                called == "load" and ast.unparse(node.func) == "np.load" and "allow_pickle" not in keywords
            ) or (called == "load_runtime" and name != "backends/tensorrt/build.py"):
                found.append(where)
    assert found == []


def _is_door(name: str, node: ast.Call) -> bool:
    """A package's `__getattr__`, which takes the module from its own list, or the gate itself."""
    text = ast.unparse(node)
    return (name.endswith("__init__.py") and "_HOME[name]" in text) or text.startswith("trust.import_module(")
