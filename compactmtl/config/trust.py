"""The one gate before code that is not of this package: nothing is imported or loaded without the user's word.

A run folder, a bundle, a recipe or a target is data: it may name a module or a library, and what it names runs with the
user's rights. So whoever imports a module or loads a library that a file names comes through here. The user's word is
`--trust` on the command line, and `trust=True` or `with trusting():` in Python; no file can give it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from compactmtl.errors import CompactError, ConfigError

_NAME = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*)")
# Of this thread (or task) and what it calls: a thread that an application starts beside it is trusted with nothing.
_TRUSTED: ContextVar[bool] = ContextVar("compactmtl_trusted", default=False)
# Modules that the user named on the command line, which is the user's word for these alone.
_NAMED: ContextVar[frozenset[str]] = ContextVar("compactmtl_named", default=frozenset())
_MEND = "read that code first, then add --trust to the command (in Python: trust=True, or `with trusting():`)"


class UntrustedError(ConfigError):
    """A file names code to run, and the user has not allowed it."""


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Allow the calls inside to import modules and load libraries that recipes and targets name.

    `trusting(False)` changes nothing: permission that was given outside stays.
    """
    token = _TRUSTED.set(trust or _TRUSTED.get())
    try:
        yield
    finally:
        _TRUSTED.reset(token)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Allow the calls inside to import the module of `package.module:name`, which the user has named in a command."""
    module = name.partition(":")[0]
    token = _NAMED.set(_NAMED.get() | {module})
    try:
        yield
    finally:
        _NAMED.reset(token)


def is_trusted() -> bool:
    """Whether the user's word has been given here."""
    return _TRUSTED.get()


def is_class_name(name: str) -> bool:
    """Whether a value has the form `package.module:Class`."""
    return _NAME.fullmatch(name) is not None


def split_name(name: str, key: str) -> tuple[str, str]:
    """Module and attribute of `package.module:Class`. Raises ConfigError where `name`, the value of `key`, is no such."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{key}: {name!r} does not name a class", "write package.module:Class, such as mydata:Birds"
        )
    return match["module"], match["attribute"]


def import_module(name: str, key: str) -> ModuleType:
    """The module of `package.module:Class`, imported; what is not on the Python path is looked for in the working folder.

    Args:
        name: the value that names it.
        key: where the name stands, for messages, such as data.name.

    Raises:
        UntrustedError: without the user's word; it says what would be imported, and from where. Nothing is run.
        ConfigError: for a name of another form, and a module that is not there.
        Exception: whatever the module raises while it is imported.
    """
    module, attribute = split_name(name, key)
    if not is_trusted() and module not in _NAMED.get():
        raise UntrustedError(
            f"{key}: {name} is code: it would import {attribute} from the module {module}, {_place(module)}",
            _MEND,
        )
    _reach(module)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module + ".").startswith(error.name + "."):
            raise ConfigError(
                f"{key}: there is no module {error.name} for {name!r}",
                "install the package, run the command in the module's folder, or add that to the path: "
                "PYTHONPATH=folder compactmtl …",
            ) from None
        raise


def _reach(module: str) -> None:
    """Put the working folder at the end of the Python path where only it has the module.

    `python -m compactmtl` has it there, the command `compactmtl` has not. It stays: what is imported may import its
    neighbors later, and so do the processes that load data.
    """
    package, here = module.partition(".")[0], str(Path.cwd())
    if here in sys.path or package in sys.modules or importlib.util.find_spec(package) is not None:
        return
    if (Path(here) / package).is_dir() or (Path(here) / f"{package}.py").is_file():
        sys.path.append(here)
        importlib.invalidate_caches()


def import_class(name: str, key: str, fits: Callable[[object], bool], what: str) -> Any:
    """What `package.module:Class` names, imported; `fits` says whether it is such a class, `what` what that is.

    Raises UntrustedError without the user's word, ConfigError where the module cannot be imported or has no such
    attribute; whatever else the module raises is reported as its own error. The caller checks what it is given.
    """
    module_name, attribute = split_name(name, key)
    try:
        module = import_module(name, key)
    except CompactError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{key}: {module_name} needs the module {error.name}, which is not installed",
            f"install {error.name}",
        ) from None
    except Exception as error:  # whatever the user's file does wrong is reported as its own error
        raise ConfigError(
            f"{key}: {module_name} fails when imported: {raised_at(error)}{type(error).__name__}: {error}",
            f"run python -c 'import {module_name}' to see the whole of it",
        ) from error
    value = getattr(module, attribute, None)
    if value is None:
        classes = sorted(name for name, value in vars(module).items() if fits(value))
        raise ConfigError(
            f"{key}: {module_name} has no {attribute}",
            f"its {what} classes: {', '.join(classes) or 'none'}",
        )
    return value


def raised_at(error: BaseException) -> str:
    """Where in the user's code an exception came from, as "file:line: "."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}: " if last is not None else ""


def library(path: str | Path, key: str) -> Path:
    """The file of a library that is about to be loaded.

    Raises UntrustedError without the user's word, ConfigError where there is no such file.
    """
    file = Path(path).expanduser()
    if not is_trusted():
        raise UntrustedError(
            f"{key}: {file} is a library: loading it runs its code"
            + ("" if file.is_file() else " (there is no such file)"),
            _MEND,
        )
    if not file.is_file():
        raise ConfigError(f"{key}: there is no file {file}", "name the file of the library")
    return file


def _place(module: str) -> str:
    """Where a module lies, in words; found without importing it, or the packages that it lies in."""
    path: list[str] | None = None
    parts = module.split(".")
    spec = None
    for depth in range(len(parts)):
        name = ".".join(parts[: depth + 1])
        spec = next(
            (
                module_spec
                for finder in sys.meta_path
                if hasattr(finder, "find_spec") and (module_spec := finder.find_spec(name, path)) is not None
            ),
            None,
        )
        if spec is None:
            here = Path.cwd() / parts[0]
            found = [one for one in (here.with_suffix(".py"), here) if one.exists()] if depth == 0 else []
            return f"which lies in {found[0]}" if found else "which is not on the Python path"
        path = list(spec.submodule_search_locations) if spec.submodule_search_locations is not None else []
    assert spec is not None
    return f"which lies in {spec.origin or ', '.join(path or []) or 'Python itself'}"
