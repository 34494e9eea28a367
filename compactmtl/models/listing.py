"""Which names of a module of the user's give a network: read from its text, so that nothing of it runs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from compactmtl.config.lookup import close_names, find
from compactmtl.config.trust import is_class_name, source_file
from compactmtl.errors import ConfigError

# Packages whose functions give networks, by the beginning of a dotted name.
_ZOOS = ("timm.create_model", "torchvision.models.", "segmentation_models_pytorch.", "torch.hub.load")
_FUNCTIONS = ("torch.nn.functional.", "torch.nn.init.", "torch.nn.utils.")  # in torch.nn, and no networks
_ENDS = ("Loss", "Parameter", "ParameterList", "ParameterDict")  # classes of torch.nn that are no networks


def networks_of(module: ModuleType) -> list[str]:
    """Classes and functions of an imported module that give an nn.Module, in alphabetical order; those that it imports too."""
    from torch import nn  # a reading of text alone needs none of it

    classes = {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and not value.__module__.startswith("torch.")
    }
    file = getattr(module, "__file__", None)
    return sorted(classes | set(network_names(Path(file)) if file else ()))


def recipe_or_module(word: str) -> Path:
    """The file of a recipe by name or path.

    Raises ConfigError where there is none; where a module has that name, its hint says how a network in it is named.
    """
    try:
        return find("recipe", word)
    except ConfigError as error:
        raise ConfigError(error.message, _module_hint(word) or error.hint) from None


def _module_hint(word: str) -> str:
    """How to name a network of the module that a word means; empty where it means none."""
    plain = word.removeprefix("./").removesuffix(".py").replace("/", ".")
    for module, attribute in ((plain, ""), (plain.rpartition(".")[0], plain.rpartition(".")[2])):
        file = source_file(module) if module and is_class_name(f"{module}:it") else None
        if file is None:
            continue
        networks = network_names(file)
        near = (
            close_names(attribute, networks)
            if attribute
            else sorted(networks, key=lambda one: one != "build")
        )
        if near:
            return f"did you mean {' or '.join(f'{module}:{one}' for one in near)}?"
        if file.resolve().is_relative_to(Path.cwd()):
            return (
                f"{module} is a module: name what in it returns the network (an nn.Module), as {module}:build"
            )
    return ""


def network_names(file: Path) -> list[str]:
    """Classes and functions that a Python file defines and that give an nn.Module, in their order.

    A class does by what it derives from; a function by its annotation or, without one, by what it returns. Empty where
    the file cannot be read.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    reading = _Reading(dict(_imports(tree)))
    own = [one for one in tree.body if isinstance(one, ast.ClassDef | ast.FunctionDef)]
    for _ in own:  # one may be of another that stands below it
        before = len(reading.networks)
        reading.networks |= {one.name for one in own if reading.gives(one)}
        if len(reading.networks) == before:
            break
    return [one.name for one in own if one.name in reading.networks and not one.name.startswith("_")]


class _Reading:
    """What names of a file mean: `imported` ones, and the `networks` found so far."""

    def __init__(self, imported: dict[str, str]) -> None:
        self.imported = imported
        self.networks: set[str] = set()

    def gives(self, one: ast.ClassDef | ast.FunctionDef) -> bool:
        if isinstance(one, ast.ClassDef):
            return any(self._is_class(base) for base in one.bases)
        if one.returns is not None:
            return self._is_class(one.returns)
        made = {
            target.id
            for part in _own_parts(one)
            if isinstance(part, ast.Assign) and self._is_made(part.value, set())
            for target in part.targets
            if isinstance(target, ast.Name)
        }
        return any(
            isinstance(part, ast.Return) and part.value is not None and self._is_made(part.value, made)
            for part in _own_parts(one)
        )

    def _is_class(self, value: ast.expr) -> bool:
        """Whether an expression names a class of networks, also one written as text."""
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return self._means(value.value)
        return self._means(_dotted(value))

    def _means(self, name: str) -> bool:
        first, dot, rest = name.partition(".")
        whole = f"{self.imported.get(first, first)}{dot}{rest}"
        last = whole.rpartition(".")[2]
        of_torch = whole.startswith("torch.nn.") and last[:1].isupper() and not whole.startswith(_FUNCTIONS)
        return name in self.networks or last.endswith("Module") or (of_torch and not last.endswith(_ENDS))

    def _is_made(self, value: ast.expr, made: set[str]) -> bool:
        """Whether an expression is a network: a call of what gives one, a name in `made`, or its .eval() and the like."""
        if isinstance(value, ast.Name):
            return value.id in made
        if not isinstance(value, ast.Call):
            return False
        name = _dotted(value.func)
        first, dot, rest = name.partition(".")
        if self._means(name) or f"{self.imported.get(first, first)}{dot}{rest}".startswith(_ZOOS):
            return True
        return isinstance(value.func, ast.Attribute) and self._is_made(value.func.value, made)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that a file imports, with what they are of."""
    for one in ast.walk(tree):
        if isinstance(one, ast.Import):
            yield from ((name.asname, name.name) for name in one.names if name.asname)
        elif isinstance(one, ast.ImportFrom):
            yield from ((name.asname or name.name, f"{one.module}.{name.name}") for name in one.names)


def _own_parts(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """A function's parts, without those of functions and classes in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        part = waiting.pop()
        yield part
        if not isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(part)


def _dotted(value: ast.expr) -> str:
    """The dotted name that an expression is; empty for any other."""
    parts = []
    while isinstance(value, ast.Attribute):
        parts.append(value.attr)
        value = value.value
    return ".".join(reversed([*parts, value.id])) if isinstance(value, ast.Name) else ""
