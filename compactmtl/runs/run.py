"""A run: the folder that training writes and every later stage reads.

compactmtl.artifacts.layout names its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from compactmtl.artifacts.files import parse_json, present, sha256_file
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
    SUBSET,
    WEIGHTS,
)
from compactmtl.artifacts.run_folder import is_run, missing, nearby, read_log
from compactmtl.artifacts.versions import resolve
from compactmtl.config import Recipe, load_recipe
from compactmtl.config.paths import check_here
from compactmtl.errors import ArtifactError, ConfigError, command
from compactmtl.models import MultiTaskModel
from compactmtl.runs.checkpoint import checked_weights, load_state, load_summary, load_weights
from compactmtl.runs.identity import check_recipe_hash, recipe_differences, recipe_hash
from compactmtl.runs.meta import VERSION, specs_from_json
from compactmtl.runs.model import example_inputs, fresh_model, plain_form
from compactmtl.surgery import load_compact
from compactmtl.tasks import Task, build_tasks
from compactmtl.tasks.by_source import measured, names_by_source
from compactmtl.verify.result import TaskMetrics

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
            overrides: `key=value` values for the place of its data and how it is read here, such as data.root=/data.

        Raises ArtifactError where it is not a run, ConfigError for an override that would change what was trained.
        """
        path = Path(path)
        if not is_run(path):
            raise ArtifactError(f"{path} is not a run{missing(path)}", nearby(path))
        check_here(path, overrides)
        # Absolute, since a name that begins with ~ is looked up at the user's home, and this folder may be called so.
        recipe = load_recipe((path / RECIPE).absolute(), overrides)
        try:
            meta = parse_json((path / META).read_text(encoding="utf-8"))
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
        """The tasks that the network gives: those that were trained, or of a subset (see compactmtl.runs.subset) those in it."""
        chosen = self.meta.get(SUBSET, list(self.trained_tasks))
        if not set(chosen) <= set(self.trained_tasks):
            raise ArtifactError(
                f"{self.path / META} names the subset {chosen}, the recipe has {list(self.trained_tasks)}",
                "make the subset again: `compactmtl compact RUN --tasks TASK`",
            )
        return {name: task for name, task in self.trained_tasks.items() if name in chosen}

    @cached_property
    def trained_tasks(self) -> dict[str, Task]:
        """All tasks of the recipe, built from the specifications that the data set gave when training began."""
        try:
            specs = specs_from_json(self.meta["specs"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{self.path / META} is damaged: its specs are not those of a data set ({error!r})",
                "put back the run's own file, or train again with --overwrite",
            ) from error
        return build_tasks(self.recipe.tasks, specs)

    @cached_property
    def measured(self) -> dict[str, Task]:
        """The tasks as they are measured: one that several data sets label, on each of them (see compactmtl.tasks.by_source)."""
        return measured(self.tasks, names_by_source(self.recipe.data.labels_apart))

    def load_model(self, checkpoint: Checkpoint = "best") -> MultiTaskModel:
        """The model in its training form (factorized where the recipe says so), in eval mode; of a subset, with all heads."""
        folder = self.path / CHECKPOINTS / checkpoint
        state = load_summary(folder) if checkpoint == BEST else load_state(folder)
        if state is None:
            raise ArtifactError(
                f"{folder} holds no checkpoint yet", "let the run train for at least one epoch"
            )
        check_recipe_hash(state, self.recipe, folder)
        model = self._fresh()
        load_weights(model, folder)
        return model.eval()

    def _fresh(self) -> MultiTaskModel:
        return fresh_model(self.recipe, self.trained_tasks, initialize=False)

    def load_plain(self, checkpoint: Checkpoint = "best") -> MultiTaskModel:
        """The model contracted to plain layers, in eval mode; no channel removed."""
        return plain_form(self.recipe, self.load_model(checkpoint)).keep_tasks(self.tasks).eval()

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
        plain = plain_form(self.recipe, self._fresh()).keep_tasks(self.tasks)
        model = load_compact(plain, folder)
        assert isinstance(model, MultiTaskModel)
        return model.eval()

    @property
    def deployed_weights(self) -> Path:
        """The file of the weights that are exported: the compact model's where there is one, else the best's."""
        if self.has_compact:
            return self.compact_folder / WEIGHTS
        return resolve(self.path / CHECKPOINTS / BEST) / WEIGHTS

    def example_inputs(self, batch: int = 1) -> tuple[Tensor, ...]:
        """A deterministic random batch at the recipe's size, float32 (batch, 3, H, W); a tensor for each of its inputs."""
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
        metrics: TaskMetrics = load_summary(self.path / CHECKPOINTS / BEST)["metrics"]
        return metrics

    @property
    def val(self) -> TaskMetrics | None:
        """Metrics of the best checkpoint on the val split; none where the run selects elsewhere and has not finished."""
        if self.recipe.data.select_on == "val":
            return self.best
        metrics: TaskMetrics | None = next(
            (event["val"] for event in reversed(self.log()) if event.get("event") == "end"), None
        )
        return metrics


def check_same_recipe(path: Path, recipe: Recipe) -> None:
    """Whether the run at `path` is of `recipe`. Raises ConfigError naming what differs."""
    run = Run.open(path)
    if run.meta.get("recipe_hash") == recipe_hash(recipe):
        return
    differing = recipe_differences(run.recipe, recipe)
    shown = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
    raise ConfigError(
        f"{path} was trained with another recipe ({shown or f'its {RECIPE} was edited'})",
        f"resume with the same recipe ({run.meta.get('recipe')}) and overrides, choose another --name, or start over with --overwrite",
    )


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
        written = parse_json((folder / SOURCE).read_text(encoding="utf-8"))
        hashes = {name: sha256_file(folder / name) for name in (PLAN, WEIGHTS)}
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename} is missing", again) from error
    except ValueError as error:
        raise ArtifactError(f"{folder / SOURCE} is damaged: {error}", again) from error
    for name, value in hashes.items():
        if not isinstance(written, dict) or written.get(name) != value:
            raise ArtifactError(f"{folder / name} is not the file that surgery wrote: its hash is off", again)
    return written.get("checkpoint")
