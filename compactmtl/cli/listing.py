"""What `recipes` and `targets` print: names with descriptions, a file, or every value with its origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.config.lookup import Kind, entries
from compactmtl.config.yaml import shown, yaml_lines
from compactmtl.errors import ConfigError

if TYPE_CHECKING:
    from compactmtl.config.recipe import Frozen


def print_entries(kind: Kind) -> None:
    """One line each: name and description.

    Raises:
        ConfigError: where there are none.
    """
    listed = entries(kind)
    if not listed:
        raise ConfigError(f"found no {kind}s", "reinstall compactmtl, which brings its own")
    width = max(len(entry.name) for entry in listed)
    for entry in listed:
        print(f"{entry.name:<{width}}  {entry.description}".rstrip())


def print_file(path: Path) -> None:
    """A file as it is written, under its path."""
    print(f"# {shown(path)}")
    print(path.read_text(encoding="utf-8").rstrip("\n"))


def print_resolved(model: Frozen, origins: Mapping[str, str]) -> None:
    """Every value as YAML, and in a comment beside it where it comes from."""
    lines = list(yaml_lines(model.model_dump(mode="json")))
    width = min(60, max(len(line) for line, _ in lines))
    for line, path in lines:
        origin = origins.get(".".join(path))
        print(f"{line:<{width}}  # {origin}" if origin else line)
