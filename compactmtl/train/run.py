"""A run: the folder that training writes and every later stop of the road reads.

runs/<name>/ recipe.yaml · meta.json · log.jsonl · tensorboard/ · checkpoints/{last,best}/ · compact/ · export/
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import compactmtl
from compactmtl.config import Recipe, Resolved, dump_recipe, load_recipe
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.models import MultiTaskModel, build_model
from compactmtl.overparam import contract, overparameterize
from compactmtl.surgery import load_compact
from compactmtl.tasks import TargetSpec, Task, build_tasks
from compactmtl.train.checkpoint import WEIGHTS, load_state, load_summary, load_weights
from compactmtl.train.files import sha256_file, write_text
from compactmtl.verify.result import TaskMetrics

RECIPE = "recipe.yaml"
META = "meta.json"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
COMPACT = "compact"
PLAN = "plan.json"
SOURCE = "source.json"  # which checkpoint a compact model was made of, and what was written
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
    def open(cls, path: str | Path) -> Run:
        """The run in folder `path`. Raises ArtifactError where it is not one."""
        path = Path(path)
        if not is_run(path):
            raise ArtifactError(f"{path} is not a run{_missing(path)}", _nearby(path))
        recipe = load_recipe(path / RECIPE)
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
        return build_tasks(self.recipe.tasks, specs_from_json(self.meta["specs"]))

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
    def has_compact(self) -> bool:
        return (self.path / COMPACT / PLAN).exists()

    def load_compact(self) -> MultiTaskModel:
        """The model after surgery, in eval mode.

        Raises ArtifactError before `compactmtl compact`, and where what it wrote isn't of the best checkpoint
        or was changed since.
        """
        folder = self.path / COMPACT
        if not self.has_compact:
            raise ArtifactError(f"{self.path} has no compact model", f"run `compactmtl compact {self.path}`")
        check_compact(self.path)
        # factorized and contracted again: the deployed form may have other layers than the plain one
        plain = plain_form(self.recipe, fresh_model(self.recipe, self.tasks, initialize=False))
        model = load_compact(plain, folder)
        assert isinstance(model, MultiTaskModel)
        return model.eval()

    @property
    def deployed_weights(self) -> Path:
        """The file of the weights that are exported: the compact model's where there is one, else the best's."""
        return self.path / (COMPACT if self.has_compact else f"{CHECKPOINTS}/best") / WEIGHTS

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


def is_run(path: Path) -> bool:
    """Whether a folder is one that training wrote."""
    return (path / RECIPE).is_file() and (path / META).is_file()


def _missing(path: Path) -> str:
    if not path.exists():
        return ": there is no such folder"
    return "" if path.is_dir() else ": it is a file"


def _nearby(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    found = sorted(str(child) for child in folder.glob("*") if is_run(child)) if folder.is_dir() else []
    if found:
        return f"runs in {folder}: {', '.join(found[:8])}"
    return "train one first: compactmtl train RECIPE"


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
            events.append(json.loads(line))
        except ValueError as error:
            raise ArtifactError(
                f"{path}:{number}: {error}", "remove the damaged line, or train again with --overwrite"
            ) from error
    return events


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


def compact_source(path: Path, folder: Path) -> dict[str, str]:
    """source.json for the compact model in `folder`: SHA-256 of the run's best weights and of what was made of them."""
    return {
        "checkpoint": sha256_file(path / CHECKPOINTS / "best" / WEIGHTS),
        PLAN: sha256_file(folder / PLAN),
        WEIGHTS: sha256_file(folder / WEIGHTS),
    }


def check_compact(path: Path) -> None:
    """Whether the compact model of the run at `path` is the one that was made, and proved, of its best checkpoint.

    Raises ArtifactError where training has gone on since, or a file was changed or is missing.
    """
    folder, again = path / COMPACT, f"run `compactmtl compact {path}` again"
    try:
        written = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        found = compact_source(path, folder)
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename} is missing", again) from error
    except ValueError as error:
        raise ArtifactError(f"{folder / SOURCE} is damaged: {error}", again) from error
    for name, sha256 in found.items():
        if isinstance(written, dict) and written.get(name) == sha256:
            continue
        if name == "checkpoint":
            raise ArtifactError(f"the compact model of {path} is not of its best checkpoint", again)
        raise ArtifactError(f"{folder / name} is not the file that surgery wrote: its hash is off", again)


def check_folder(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Whether a run may be written to `path`. Raises ConfigError where something is there already."""
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other", "give one of the two")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not is_run(path):
        raise ConfigError(f"{path} exists and is not a run", "choose another --out or --name")
    if not resume and not overwrite:
        raise ConfigError(
            f"{path} holds a run already",
            "continue it with --resume, replace it with --overwrite, or choose another --name",
        )


def create_folder(path: Path, recipe: Recipe, meta: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write a run's recipe and meta data; with `overwrite` a run that is there goes first."""
    if overwrite and is_run(path):
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    update_recipe(path, recipe)
    write_text(path / META, json.dumps(dict(meta), indent=2) + "\n")


def update_recipe(path: Path, recipe: Recipe) -> None:
    """Write recipe.yaml: on resuming, the data may lie elsewhere than at the start."""
    header = "# The resolved recipe of this run: `compactmtl train` reads it back.\n"
    write_text(path / RECIPE, header + dump_recipe(recipe))


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
