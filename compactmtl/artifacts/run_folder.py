"""A run's folder as files: whether it is one, whether it may be written, how it begins, its log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from compactmtl.artifacts.files import parse_json, write_text
from compactmtl.artifacts.layout import (
    BUNDLE_FILE,
    CHECKPOINTS,
    DATA,
    LAST,
    LOCK,
    META,
    RECIPE,
    REPLACED,
    SUBSET_OF,
)
from compactmtl.artifacts.lock import writing
from compactmtl.errors import ArtifactError, ConfigError, command


def is_run(path: Path) -> bool:
    """Whether a folder is one that training wrote."""
    return (path / RECIPE).is_file() and (path / META).is_file()


def missing(path: Path) -> str:
    """Why a path is no run, as the end of a sentence."""
    if not path.exists():
        return ": there is no such folder"
    if not path.is_dir():
        return ": it is a file"
    return ": it is a bundle, which `export` wrote" if (path / BUNDLE_FILE).is_file() else ""


def nearby(path: Path) -> str:
    """The runs beside a path that is none."""
    folder = path if path.is_dir() else path.parent
    siblings = sorted(str(child) for child in folder.glob("*") if is_run(child)) if folder.is_dir() else []
    if siblings:
        return f"runs in {folder}: {', '.join(siblings[:8])}"
    return "train one first: `compactmtl train RECIPE`"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log.jsonl; a last line that a kill cut off is left out.

    Raises ArtifactError naming a damaged line.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    events = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            events.append(parse_json(line))
        except ValueError as error:
            raise ArtifactError(
                f"{path}:{number}: {error}", "remove the damaged line, or train again with --overwrite"
            ) from error
    return events


def check_folder(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Whether a run may be written to `path`.

    Raises ConfigError where something is there already, or nothing to resume; HeldError where that is being written.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other", "give one of the two")
    if resume and not is_run(path):
        raise ConfigError(
            f"there is no run {path} to resume", f"leave --resume out to start it; {nearby(path)}"
        )
    if resume and not (path / CHECKPOINTS / LAST).exists() and _is_subset(path):
        raise ConfigError(
            f"{path} is a subset of another run's tasks: it cannot be trained on", "resume the whole run"
        )
    if not path.exists():
        return
    names = {child.name for child in path.iterdir()} - {LOCK} if path.is_dir() else None
    if names is not None and (not names or _only_begun(path, names)):
        return
    if names is not None and REPLACED in names:
        if overwrite:
            return
        raise ConfigError(f"{path} is a run whose replacing was cut off", "give --overwrite again")
    if not is_run(path):
        raise ConfigError(f"{path} exists and is not a run", "choose another --out or --name")
    if not resume and not overwrite:
        # of a run that is being written both --resume and --overwrite would be refused: say who holds it instead
        with suppress(OSError, ArtifactError), writing(path, "train"):
            pass
        raise ConfigError(
            f"{path} holds a run already",
            "continue it with --resume, replace it with --overwrite, or choose another --name",
        )


def _is_subset(path: Path) -> bool:
    with suppress(ValueError):
        meta = parse_json((path / META).read_text(encoding="utf-8"))
        return isinstance(meta, dict) and SUBSET_OF in meta
    return False


def _only_begun(path: Path, names: set[str]) -> bool:
    """Whether a folder holds only what a start that was cut off leaves: recipe.yaml is written last."""
    if not names <= {META, DATA, f".{META}.tmp", f".{DATA}.tmp", f".{RECIPE}.tmp"}:
        return False
    try:
        return META not in names or "recipe_hash" in parse_json((path / META).read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        return False


def create_folder(
    path: Path, recipe: str, meta: Mapping[str, Any], *, overwrite: bool, data: str | None = None
) -> None:
    """Write a run's meta data, its data.json and, last, its `recipe` as YAML; with `overwrite` a run that is there goes first.

    A kill on the way leaves a folder that `check_folder` knows as a start, or a replacing, that was cut off.
    """
    path.mkdir(parents=True, exist_ok=True)
    if overwrite:
        _set_aside(path)
    update_meta(path, meta)
    if data is not None:
        write_text(path / DATA, data)
    update_recipe(path, recipe)
    shutil.rmtree(path / REPLACED, ignore_errors=True)


def _set_aside(path: Path) -> None:
    """Move what is in a run's folder, but its lock, into one that is then deleted; meta.json first: no run is left."""
    aside = path / REPLACED
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    children = [child for child in path.iterdir() if child.name not in (LOCK, REPLACED)]
    for child in sorted(children, key=lambda child: child.name != META):
        child.rename(aside / child.name)


def update_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Write meta.json."""
    write_text(path / META, json.dumps(dict(meta), indent=2) + "\n")


def update_recipe(path: Path, recipe: str) -> None:
    """Write recipe.yaml, given as YAML: on resuming, the data may lie elsewhere than at the start."""
    header = f"# The resolved recipe of this run: `{command('train', RECIPE)}` reads it back.\n"
    write_text(path / RECIPE, header + recipe)
