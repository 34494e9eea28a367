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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from compactmtl.artifacts.files import expanded
from compactmtl.errors import CompactError, ConfigError, machine_fault

_NAME = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*)")
# Of this thread (or task) and what it calls: a thread that an application starts beside it is trusted with nothing.
_TRUSTED: ContextVar[bool] = ContextVar("compactmtl_trusted", default=False)
# Modules that the user named on the command line, which is the user's word for these alone.
_NAMED: ContextVar[frozenset[str]] = ContextVar("compactmtl_named", default=frozenset())
PACKAGE = Path(__file__).parents[1]
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
        ConfigError: for a name of another form, a module that is not there, and whatever the module raises while it is
            imported.
    """
    module, attribute = split_name(name, key)
    if not is_trusted() and module not in _NAMED.get():
        raise UntrustedError(
            f"{key}: {name} is code: it would import {attribute} from the module {module}, {_place(module)}",
            _MEND,
        )
    _reach(module)
    with own_errors(
        f"{key}: {module} fails when imported", f"run python -c 'import {module}' to see all of it"
    ):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module + ".").startswith(error.name + "."):
                if module.endswith(".py") and source_file(module.removesuffix(".py")) is not None:
                    raise ConfigError(
                        f"{key}: {name!r} names a file",
                        f"name its module: {module.removesuffix('.py')}:{attribute}",
                    ) from None
                raise ConfigError(
                    f"{key}: there is no module {error.name} for {name!r}",
                    "install the package, run the command in the module's folder, or add that to the path: "
                    "PYTHONPATH=folder compactmtl …",
                ) from None
            if error.name is None:  # raised by hand
                raise
            raise ConfigError(
                f"{key}: {module} needs the module {error.name}, which is not installed",
                f"install {error.name}",
            ) from None


@contextmanager
def own_errors(what: str, mend: str) -> Iterator[None]:
    """Report what code of the user's raises inside as its own fault: a ConfigError that begins with `what`.

    Our own errors pass, and so do those that the machine is the cause of. A module that ends the program, as a script
    does, is a fault too.
    """
    try:
        yield
    except CompactError:
        raise
    except (Exception, SystemExit) as error:
        if machine_fault(error) is not None:
            raise
        raise ConfigError(f"{what}: {raised_at(error)}{type(error).__name__}: {error}", mend) from error


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


def import_class(name: str, key: str, listed: Callable[[ModuleType], Iterable[str]], what: str) -> Any:
    """What `package.module:Class` names, imported; `listed` gives the names of a module that would fit, `what` what these
    are.

    Raises as `import_module` does, and ConfigError where the module has no such attribute. The caller checks what it is
    given.
    """
    module_name, attribute = split_name(name, key)
    module = import_module(name, key)
    value = getattr(module, attribute, None)
    if value is None:
        raise ConfigError(
            f"{key}: {module_name} has no {attribute}",
            f"its {what}: {', '.join(sorted(listed(module))) or 'none'}",
        )
    return value


def those(fits: Callable[[object], bool]) -> Callable[[ModuleType], list[str]]:
    """For `import_class`: the names of a module whose values fit."""
    return lambda module: [name for name, value in vars(module).items() if fits(value)]


def raised_at(error: BaseException) -> str:
    """Where in the user's code an exception came from, as "file:line: "; empty where it came from our own call of it."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}: "
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    file = "" if last is None else last.tb_frame.f_code.co_filename
    if last is None or Path(file).is_relative_to(PACKAGE):
        return ""
    return f"{file}:{last.tb_lineno}: "


def library(path: str | Path, key: str) -> Path:
    """The file of a library that is about to be loaded.

    Raises UntrustedError without the user's word, ConfigError where there is no such file.
    """
    file = expanded(path)
    if not is_trusted():
        raise UntrustedError(
            f"{key}: {file} is a library: loading it runs its code"
            + ("" if file.is_file() else " (there is no such file)"),
            _MEND,
        )
    if not file.is_file():
        raise ConfigError(f"{key}: there is no file {file}", "name the file of the library")
    return file


def source_of(name: str, key: str) -> Path | None:
    """The file of the module of `package.module:Class`; None where it has none. Nothing is imported.

    What is not on the Python path is looked for in the working folder, as `import_module` does.
    """
    return source_file(split_name(name, key)[0])


def source_file(module: str) -> Path | None:
    """As `source_of`, of a module's dotted name; any other text has none."""
    spec, _ = _found(module)
    if spec is not None:
        return Path(spec.origin) if spec.has_location and spec.origin is not None else None
    return next((one for one in _below(Path.cwd(), module) if one.is_file()), None)


def _below(folder: Path, module: str) -> tuple[Path, Path]:
    """Where a module's file would lie below a folder."""
    stem = folder.joinpath(*module.split("."))
    return stem.with_name(f"{stem.name}.py"), stem / "__init__.py"


def _found(module: str) -> tuple[ModuleSpec | None, list[str]]:
    """A module's spec, and where its own modules would lie; found without importing the packages that it lies in."""
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(len(parts)):
        name = ".".join(parts[: depth + 1])
        spec = next(
            (
                found
                for finder in sys.meta_path
                if hasattr(finder, "find_spec") and (found := finder.find_spec(name, path)) is not None
            ),
            None,
        )
        if spec is None:
            return None, []
        path = list(spec.submodule_search_locations) if spec.submodule_search_locations is not None else []
    return spec, path or []


def _place(module: str) -> str:
    """Where a module lies, in words."""
    spec, path = _found(module)
    if spec is not None:
        return f"which lies in {spec.origin or ', '.join(path) or 'Python itself'}"
    here = source_file(module)
    return "which is not on the Python path" if here is None else f"which lies in {here}"
