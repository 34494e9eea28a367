"""A run: the folder that training writes and every later stop of the road reads.

What lies where is said in compactmtl.artifacts.layout.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import compactmtl
from compactmtl.artifacts.files import present, sha256_file
from compactmtl.artifacts.hashes import check_files, note_unhashed, read_hashes
from compactmtl.artifacts.layout import (
    BEST,
    CHECKPOINTS,
    COMPACT,
    HASHES,
    LOG,
    META,
    PLAN,
    RECIPE,
    SOURCE,
    WEIGHTS,
)
from compactmtl.artifacts.run_folder import is_run, missing, nearby, read_log
from compactmtl.artifacts.versions import resolve
from compactmtl.config import Recipe, Resolved, load_recipe
from compactmtl.config.paths import check_here
from compactmtl.errors import ArtifactError, ConfigError, command
from compactmtl.models import MultiTaskModel, build_model
from compactmtl.overparam import contract, overparameterize
from compactmtl.surgery import load_compact
from compactmtl.tasks import TargetSpec, Task, build_tasks
from compactmtl.train.checkpoint import checked_weights, load_state, load_summary, load_weights
from compactmtl.verify.result import TaskMetrics

VERSION = 1

# where and beside what a run happens; all else decides its result and must be the same to resume
_PLACE = frozenset(
    {
        "description",
        "targets",
        "surgery.align",
        "surgery.unreached",
        "data.root",
        "data.workers",
        "data.cache",
        "train.device",
        "train.threads",
        "train.competition",
    }
)

Checkpoint = Literal["best", "last"]


@dataclass(frozen=True)
class Run:
    """One trained or training model on disk. `Run.open(path)`."""

    path: Path
    name: str
    recipe: Recipe
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, overrides: Sequence[str] = ()) -> Run:
        """The run in folder `path`.

        Args:
            overrides: `key=value` words that say where its data lies and how it is read here, such as data.root=/data.

        Raises ArtifactError where it is not a run, ConfigError for an override that would change what was trained.
        """
        path = Path(path)
        if not is_run(path):
            raise ArtifactError(f"{path} is not a run{missing(path)}", nearby(path))
        check_here(path, overrides)
        recipe = load_recipe(path / RECIPE, overrides)
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtifactError(
                f"{path / META} is damaged: {error}", "train again with --overwrite"
            ) from error
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            raise ArtifactError(
                f"{path / META} is not of version {VERSION}",
                "use the version of compactmtl that wrote the run, or train again with --overwrite",
            )
        return cls(path, path.resolve().name, recipe, meta)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks, built from the specifications that the data set gave when training began."""
        try:
            specs = specs_from_json(self.meta["specs"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{self.path / META} is damaged: its specs are not those of a data set ({error!r})",
                "put back the run's own file, or train again with --overwrite",
            ) from error
        return build_tasks(self.recipe.tasks, specs)

    def load_model(self, checkpoint: Checkpoint = "best") -> MultiTaskModel:
        """The model in its training form (factorized where the recipe says so), in eval mode."""
        folder = self.path / CHECKPOINTS / checkpoint
        state = load_summary(folder) if checkpoint == "best" else load_state(folder)
        if state is None:
            raise ArtifactError(
                f"{folder} holds no checkpoint yet", "let the run train for at least one epoch"
            )
        check_recipe_hash(state, self.recipe, folder)
        model = fresh_model(self.recipe, self.tasks, initialize=False)
        load_weights(model, folder)
        return model.eval()

    def load_plain(self, checkpoint: Checkpoint = "best") -> MultiTaskModel:
        """The model contracted to plain layers, in eval mode; no channel removed."""
        return plain_form(self.recipe, self.load_model(checkpoint)).eval()

    @property
    def compact_folder(self) -> Path:
        """Where the compact model lies; it need not be there."""
        return present(self.path / COMPACT)

    @property
    def has_compact(self) -> bool:
        """Whether there is one, whole or damaged: a damaged one must not pass for none."""
        return any((self.compact_folder / name).exists() for name in (PLAN, HASHES))

    def load_compact(self) -> MultiTaskModel:
        """The model after surgery, in eval mode.

        Raises ArtifactError before `compactmtl compact`, and where what it wrote isn't of the best checkpoint
        or was changed since.
        """
        folder = self.compact_folder
        if not self.has_compact:
            raise ArtifactError(f"{self.path} has no compact model", f"run `{command('compact', self.path)}`")
        check_compact(self.path)
        # factorized and contracted again: the deployed form may have other layers than the plain one
        plain = plain_form(self.recipe, fresh_model(self.recipe, self.tasks, initialize=False))
        model = load_compact(plain, folder)
        assert isinstance(model, MultiTaskModel)
        return model.eval()

    @property
    def deployed_weights(self) -> Path:
        """The file of the weights that are exported: the compact model's where there is one, else the best's."""
        if self.has_compact:
            return self.compact_folder / WEIGHTS
        return resolve(self.path / CHECKPOINTS / BEST) / WEIGHTS

    def example_inputs(self, batch: int = 1) -> tuple[Tensor]:
        """A deterministic random batch at the recipe's size, float32 (batch, 3, H, W)."""
        return example_inputs(self.recipe, batch)

    def log(self) -> list[dict[str, Any]]:
        """The events of log.jsonl, oldest first."""
        return read_log(self.path / LOG)

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return any(event.get("event") == "end" for event in self.log())

    @property
    def best(self) -> TaskMetrics:
        """Metrics of the best epoch on the split that the recipe selects on."""
        metrics: TaskMetrics = load_summary(self.path / CHECKPOINTS / "best")["metrics"]
        return metrics

    @property
    def val(self) -> TaskMetrics | None:
        """Metrics of the best checkpoint on the val split; none where the run selects elsewhere and has not finished."""
        if self.recipe.data.select_on == "val":
            return self.best
        found: TaskMetrics | None = next(
            (event["val"] for event in reversed(self.log()) if event.get("event") == "end"), None
        )
        return found


def fresh_model(recipe: Recipe, tasks: Mapping[str, Task], *, initialize: bool = True) -> MultiTaskModel:
    """The recipe's model in its training form; `initialize=False` where its weights are about to be loaded."""
    model = build_model(recipe, tasks, initialize=initialize)
    options = recipe.overparam
    if options is None:
        return model
    return overparameterize(
        model,
        kind=options.kind,
        rank=options.rank,
        scope=options.scope,
        exclude=options.exclude,
        tasks=list(tasks) if options.owned else (),
        per_task=options.per_task,
        depthwise=options.depthwise,
        evaluation=options.evaluation,
        initialize=initialize,
    )


def plain_form(recipe: Recipe, model: MultiTaskModel) -> MultiTaskModel:
    """A trained model in the form that the recipe deploys: contracted, thin layers left where it asks for them."""
    options = recipe.overparam
    return model if options is None else contract(model, options.keep_factors_below)


def example_inputs(recipe: Recipe, batch: int = 1) -> tuple[Tensor]:
    """A deterministic random batch at the recipe's size, float32 (batch, 3, H, W)."""
    height, width = recipe.data.size
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, 3, height, width, generator=generator),)


def specs_to_json(specs: Mapping[str, TargetSpec]) -> dict[str, dict[str, Any]]:
    """Target specifications as JSON values."""
    return {name: asdict(spec) for name, spec in specs.items()}


def specs_from_json(values: Mapping[str, Mapping[str, Any]]) -> dict[str, TargetSpec]:
    """The inverse of `specs_to_json`."""
    return {
        name: TargetSpec(**{**value, "classes": tuple(value["classes"])}) for name, value in values.items()
    }


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 over all that decides a run's result; the data's place, workers and device do not.

    Values at their default are left out: a later version's new key does not make old runs foreign.
    """
    text = json.dumps(deciding(recipe, defaults=False), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_differences(one: Recipe, other: Recipe) -> list[str]:
    """Dotted keys that decide a run's result and differ, with both values."""
    first, second = deciding(one), deciding(other)
    keys = sorted(set(first) | set(second))
    return [
        f"{key}: {json.dumps(first.get(key))} and {json.dumps(second.get(key))}"
        for key in keys
        if first.get(key) != second.get(key)
    ]


def check_same_recipe(path: Path, recipe: Recipe) -> None:
    """Whether the run at `path` is of `recipe`. Raises ConfigError naming what differs."""
    run = Run.open(path)
    if run.meta.get("recipe_hash") == recipe_hash(recipe):
        return
    differing = recipe_differences(run.recipe, recipe)
    shown = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
    raise ConfigError(
        f"{path} was trained with another recipe ({shown or 'its recipe.yaml was edited'})",
        f"resume with the same recipe ({run.meta.get('recipe')}) and overrides, or choose another --name",
    )


def check_recipe_hash(state: Mapping[str, Any], recipe: Recipe, folder: Path) -> None:
    """Whether a checkpoint's state or summary is of `recipe`. Raises ArtifactError."""
    if state.get("recipe_hash") != recipe_hash(recipe):
        raise ArtifactError(
            f"{folder} is a checkpoint of another recipe than {folder.parent.parent / RECIPE}",
            "put back the run's own checkpoint and recipe.yaml, or train again with --overwrite",
        )


def deciding(recipe: Recipe, defaults: bool = True) -> dict[str, Any]:
    """Every value that decides a run's result, by dotted key; without `defaults` only those that differ from it."""
    flat = dict(_flatten(recipe.model_dump(mode="json", exclude_defaults=not defaults), ""))
    return {key: value for key, value in flat.items() if key not in _PLACE}


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _flatten(child, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def check_compact(path: Path) -> None:
    """Whether the compact model of the run at `path` is the one that was made, and proved, of its best checkpoint.

    Raises ArtifactError where training has gone on since, or a file was changed or is missing.
    """
    folder, again = present(path / COMPACT), f"run `{command('compact', path)}` again"
    best = checked_weights(path / CHECKPOINTS / BEST)
    hashes = read_hashes(folder, again)
    if hashes is None:
        made_of = _check_source(folder, again)
        note_unhashed(folder)
    else:
        check_files(folder, hashes, again)
        made_of = hashes.sources.get("checkpoint")
    if made_of != best:
        raise ArtifactError(f"the compact model of {path} is not of its best checkpoint", again)


def _check_source(folder: Path, again: str) -> Any:
    """The checkpoint that source.json names, as versions before hashes.json wrote it; plan and weights are checked."""
    try:
        written = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        found = {name: sha256_file(folder / name) for name in (PLAN, WEIGHTS)}
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename} is missing", again) from error
    except ValueError as error:
        raise ArtifactError(f"{folder / SOURCE} is damaged: {error}", again) from error
    for name, value in found.items():
        if not isinstance(written, dict) or written.get(name) != value:
            raise ArtifactError(f"{folder / name} is not the file that surgery wrote: its hash is off", again)
    return written.get("checkpoint")


def new_meta(resolved: Resolved, specs: Mapping[str, TargetSpec]) -> dict[str, Any]:
    """What meta.json says of a run: where it came from and what the data set said of its targets."""
    return {
        "version": VERSION,
        "recipe": resolved.name,
        "recipe_hash": recipe_hash(resolved.recipe),
        "overrides": [key for key, origin in resolved.origins.items() if origin == "override"],
        "seed": resolved.recipe.seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "specs": specs_to_json(specs),
    }


def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on."""
    names = ("torch", "torchvision", "timm", "numpy")
    return {
        "compactmtl": compactmtl.__version__,
        **{name: metadata.version(name) for name in names},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
