"""Deployment targets with their backend's own keys: loaded from YAML by name, or read from a bundle's JSON.

A target may hold the keys of several backends, so that one that extends another may change the backend: all of them are
checked, and those of the target's own backend are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from compactmtl.backends.base import BackendOptions
from compactmtl.backends.registry import all_backends, backend_names, get_backend
from compactmtl.config.load import origins, read_document
from compactmtl.config.lookup import name_of
from compactmtl.config.target import Target
from compactmtl.config.validate import validate, validate_options


@dataclass(frozen=True)
class ResolvedTarget:
    """A target with the origin of each of its values.

    `origins` maps a dotted key to "file:line", "override" or "default"; `path` is the file that was named.
    """

    target: Target
    origins: Mapping[str, str]
    name: str
    path: Path


def resolve_target(name_or_path: str | Path, overrides: Sequence[str] = ()) -> ResolvedTarget:
    """A deployment target by name or path, `key=value` overrides laid over it, with the origin of each value.

    Raises ConfigError naming file and line, the key, what was expected and found, and the nearest right key or name; and
    where the target asks its backend for a precision that it does not take.
    """
    path, node = read_document("target", name_or_path, overrides)
    name = name_of("target", path)
    target = _kept(validate(target_schema(), node, f"target {name}"))
    return ResolvedTarget(target, dict(origins(target, node)), name, path)


def load_target(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Target:
    """A deployment target by name or path; raises as `resolve_target`."""
    return resolve_target(name_or_path, overrides).target


def checked_target(target: Target) -> Target:
    """A target that was read as data, such as a bundle's, with every key checked and those of its own backend kept.

    Raises ConfigError naming the key.
    """
    return _kept(validate_options(target_schema(), target.model_dump(mode="json"), ""))


def machine_files(target: Target) -> dict[str, str]:
    """Keys of a target, of whatever backend, that name a file of one machine, with their values."""
    return {
        key: value
        for backend in all_backends()
        if backend.Options.model_fields.keys() & target.own.keys()
        for key, value in _machine_files(backend.Options, target)
    }


def _machine_files(options: type[BackendOptions], target: Target) -> Iterator[tuple[str, str]]:
    given = {key: value for key, value in target.own.items() if key in options.model_fields}
    own = options.model_validate(given)
    yield from _differences(own.model_dump(mode="json"), own.portable.model_dump(mode="json"))


def _differences(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name, value in one.items():
            yield from _differences(value, other.get(name), f"{key}.{name}" if key else name)
    elif one != other:
        yield key, str(one)


class _Whole(Target):
    """A target whose keys are all known."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _possible(self) -> _Whole:
        if objection := get_backend(self.backend).objection(self):
            raise ValueError(objection)
        return self


def target_schema() -> type[Target]:
    """A model of every key that a target may have: the general ones, and those of every backend."""
    return _schema_of(backend_names(), tuple(dict.fromkeys(backend.Options for backend in all_backends())))


@cache
def _schema_of(names: tuple[str, ...], options: tuple[type[BackendOptions], ...]) -> type[_Whole]:
    bases: tuple[type, ...] = (_Whole, *(one for one in options if one is not BackendOptions))
    choices: Any = Literal[names]
    namespace = {
        "__module__": __name__,
        "__annotations__": {"backend": choices},
        "backend": Field(description=Target.model_fields["backend"].description),
        "model_config": ConfigDict(extra="forbid"),
    }
    schema: type[_Whole] = type("Target", bases, namespace)
    return schema


def _kept(whole: Target) -> Target:
    """The target with its own backend's keys alone, those with a default written out."""
    options = get_backend(whole.backend).Options.model_fields
    values = whole.model_dump(mode="json", include={*Target.model_fields, *options})
    return Target.model_validate(values)
