"""Whether a run goes on with the data that it began with: data.json of the run against the data set as it is."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compactmtl.artifacts.files import parse_json
from compactmtl.artifacts.layout import DATA
from compactmtl.config import Recipe
from compactmtl.data.base import VisionDataset
from compactmtl.data.fingerprint import Fingerprint, differences, fingerprint
from compactmtl.errors import ArtifactError, CompactWarning, DataError
from compactmtl.runs.meta import specs_to_json
from compactmtl.runs.run import Run
from compactmtl.tasks import TargetSpec
from compactmtl.train.label_teachers import LabelTeacher

VERSION = 1
ACCEPT = "--accept-changed-data"
TEACHERS = "pseudo_label_teachers"
_STATISTICS = {"mean", "std"}

Splits = dict[str, Fingerprint]


def fingerprints(recipe: Recipe, splits: Mapping[str, VisionDataset]) -> Splits:
    """A fingerprint of each split that a recipe trains or selects on."""
    return {split: fingerprint(dataset, recipe.data.root) for split, dataset in splits.items()}


def dump_data(splits: Splits, teachers: Mapping[str, str] | None = None) -> str:
    """The text of data.json; `teachers` are the SHA-256 of those of pseudo-labels, by task."""
    taught = {TEACHERS: dict(teachers)} if teachers else {}
    return json.dumps({"version": VERSION, "splits": splits, **taught}, indent=0, ensure_ascii=False) + "\n"


def check_data(
    current: Splits,
    specs: Mapping[str, TargetSpec],
    teachers: Mapping[str, LabelTeacher],
    run: Run,
    *,
    accept: bool,
) -> list[str]:
    """Hold a data set of these fingerprints and `specs`, and the teachers of its pseudo-labels, against a run's data.json.

    Returns what changed, in words, where `accept` lets it pass; raises DataError with it otherwise, and always where
    targets differ in more than their statistics, which the run keeps as they were. A run of a version that wrote no
    data.json is noted.
    """
    path = run.path / DATA
    known = _read(path)
    if known is None:
        warnings.warn(
            f"{path} is not there: an older version began this run, so changes of its data go unnoticed",
            CompactWarning,
            stacklevel=2,
        )
        return []
    before, known_teachers = known
    targets = _changed_targets(run.meta["specs"], specs_to_json(specs))
    if other := [text for text, fits in targets.items() if not fits]:
        raise DataError(
            f"the data set's targets are not those that {run.path} began with: {'; '.join(other)}",
            "put the data set's description back, or train another run with --name: this one's heads have other outputs",
        )
    changed = [
        f"{split}: {'; '.join(parts)}"
        for split, now in current.items()
        if (parts := differences(before.get(split, {}), now))
    ]
    changed += targets
    changed += [
        f"the teacher of {task}'s pseudo-labels, {one.name}, has changed"
        for task, one in teachers.items()
        if known_teachers.get(task) != one.sha256
    ]
    if changed and not accept:
        raise DataError(
            f"the data set is not the one that {run.path} began with: {'; '.join(changed)}",
            f"put the data back (data.root says where it is read), go on with what is there by {ACCEPT}, "
            "or train another run with --name",
        )
    return changed


def _read(path: Path) -> tuple[Splits, dict[str, str]] | None:
    """The fingerprints of a run's splits, and its teachers of pseudo-labels; none where an older version began the run."""
    try:
        values: Any = parse_json(path.read_text(encoding="utf-8"))
        if values["version"] != VERSION:
            raise ValueError(f"it is of version {values['version']}, this compactmtl reads {VERSION}")
        splits: Splits = values["splits"]
        teachers = dict(values.get(TEACHERS, {}))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is damaged: {error}", "remove it to go on unchecked, or train again with --overwrite"
        ) from error
    return splits, teachers


def _changed_targets(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> dict[str, bool]:
    """Which targets' specifications changed, in words, and whether the run's heads still fit them."""
    changes = {}
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        if one is None or other is None:
            changes[f"target {name} is {'new' if one is None else 'gone'}"] = False
            continue
        keys = [key for key in other if not _same(one.get(key), other[key])]
        if keys:
            changes[f"target {name}: {', '.join(keys)} changed"] = set(keys) <= _STATISTICS
    return changes


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON has them; statistics to 1e-5, since a processor's order of summation moves their last digits."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
