"""Synthetic runs on disk, through the real schemas, with tiny models and a tiny val split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.config.recipe import Recipe
from compactmtl.config.target import Target
from compactmtl.data.base import preprocessing
from compactmtl.export.bundle import bundle_tasks
from compactmtl.export.describe import input_record, output_records
from compactmtl.export.record import BundleInfo, Training
from compactmtl.tasks import TargetSpec, Task, build_tasks
from compactmtl.verify.result import TaskMetrics, Verification
from tests.support.synthetic_verification import BEST, ROOM_TASKS, scaled, verification

SIZE = (48, 64)
ROOM = ("wall", "floor", "box", "sphere")
SPECS = {
    "segmentation": TargetSpec(kind="mask", classes=ROOM),
    "depth": TargetSpec(kind="depth", unit="m"),
    "normals": TargetSpec(kind="normals"),
    "age": TargetSpec(kind="scalar", unit="years", mean=33.0, std=20.0),
    "gender": TargetSpec(kind="class", classes=("male", "female")),
}
KINDS = {
    "segmentation": "segmentation",
    "depth": "depth",
    "normals": "normals",
    "age": "regression",
    "gender": "classification",
}
FACE_TASKS = ("age", "gender")


def make_recipe(tasks: tuple[str, ...] = ROOM_TASKS, **extra: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "description": "a synthetic run",
            "data": {"name": "scenes", "size": SIZE, "batch_size": 2},
            "tasks": {name: {"kind": KINDS[name]} for name in tasks},
            **extra,
        }
    )


class TinyModel(nn.Module):
    """Maps by a 1×1 convolution, values by a linear layer on the mean color."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleDict(
            {
                name: nn.Conv2d(3, task.channels, 1) if task.dense else nn.Linear(3, task.channels)
                for name, task in tasks.items()
            }
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        pooled = image.mean((2, 3))
        return {
            name: head(image) if isinstance(head, nn.Conv2d) else head(pooled)
            for name, head in self.heads.items()
        }


@dataclass(frozen=True)
class SyntheticRun:
    """What the report reads of a run."""

    path: Path
    name: str
    recipe: Recipe

    @cached_property
    def tasks(self) -> dict[str, Task]:
        return build_tasks(self.recipe.tasks, SPECS)

    @property
    def measured(self) -> dict[str, Task]:
        return self.tasks

    def load_plain(self, checkpoint: str = "best") -> nn.Module:
        return TinyModel(self.tasks).eval()

    def load_compact(self) -> nn.Module:
        return TinyModel(self.tasks).eval()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "log.jsonl").read_text().splitlines()]

    @property
    def val(self) -> TaskMetrics | None:
        return self.best if self.recipe.data.select_on == "val" else None

    @property
    def best(self) -> TaskMetrics:
        events = self.log()
        best: TaskMetrics = events[-1]["best"] if events and events[-1]["event"] == "end" else {}
        return best


SURGERY = {
    "macs": {"before": 73_728, "after": 29_491},
    "parameters": {"before": 32, "after": 13},
    "layers": [
        {
            "name": f"encoder.layer{stage}.{block}.conv{conv}",
            "type": "Conv2d",
            "before": [64 * 2 ** (stage - 1)] * 2,
            "after": [(40 + 8 * conv) * 2 ** (stage - 1) - 8 * block, 64 * 2 ** (stage - 1) - 16],
            "macs": {"before": 30_000_000, "after": 12_000_000},
        }
        for stage in (1, 2, 3, 4)
        for block in (0, 1)
        for conv in (1, 2)
    ],
    "proof": {
        "max_relative_error": 4.1e-16,
        "tolerance": 1e-9,
        "dtype": "float64",
        "cases": [{"shape": [1, 3, 48, 64], "max_relative_error": 4.1e-16}],
    },
    "not_pruned": [{"name": "encoder.stem", "reason": "its input is the image"}],
    "seconds": 1.2,
}


def write_run(
    path: Path,
    recipe: Recipe,
    *,
    factor: float = 1.0,
    compacted: bool = False,
    exported: bool = False,
    passed: bool = True,
    finished: bool = True,
    baseline: TaskMetrics | None = None,
    recipe_name: str = "scenes/dense",
) -> SyntheticRun:
    """A run folder of 12 epochs as training, surgery and export leave it."""
    tasks = tuple(recipe.tasks)
    path.mkdir(parents=True)
    meta = {
        "version": 1,
        "recipe": recipe_name,
        "seed": recipe.seed,
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.14.1", "compactmtl": "0.1.0"},
    }
    (path / "meta.json").write_text(json.dumps(meta))
    (path / "recipe.yaml").write_text("# resolved\n")
    events: list[dict[str, Any]] = [{"event": "start"}]
    for epoch in range(1, 13):
        progress = 1 - 0.6 * 0.75**epoch
        val = {
            task: {
                metric: factor
                * value
                * (
                    progress
                    if build_tasks(recipe.tasks, SPECS)[task].metric_info[metric].higher_is_better
                    else 1 / progress
                )
                for metric, value in BEST[task].items()
            }
            for task in tasks
        }
        sparsity = {
            "groups_zero": max(0.0, min(0.6, (epoch - 3) * 0.12)),
            "strength": 0.01,
            "macs_removable": max(0.0, min(0.62, (epoch - 3) * 0.13)),
        }
        events.append(
            {
                "event": "epoch",
                "epoch": epoch,
                "step": 10 * epoch,
                "seconds": 3.5,
                "lr": 1e-3,
                "train": {"loss": 2.0 / epoch, "losses": dict.fromkeys(tasks, 1.0 / epoch)},
                "val": val,
                "score": progress,
                "delta_m": None,
                "sparsity": sparsity if compacted else None,
            }
        )
    if finished:
        events.append({"event": "end", "best_epoch": 11, "best": scaled(factor, tasks), "seconds": 43.0})
    (path / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if compacted:
        (path / "compact").mkdir()
        (path / "compact" / "surgery.json").write_text(json.dumps(SURGERY))
        (path / "compact" / "plan.json").write_text("{}")
    run = SyntheticRun(path, path.name, recipe)
    if exported:
        add_export(run, verification(tasks, passed=passed, baseline=baseline))
    return run


def add_export(run: SyntheticRun, found: Verification) -> None:
    """An export of the run's present model for the verification's target."""
    folder = run.path / "export" / found.target
    folder.mkdir(parents=True)
    (folder / "verification.json").write_text(found.model_dump_json())
    compacted = (run.path / "compact" / "plan.json").exists()
    height, width = SIZE
    images = preprocessing(run.recipe.data)
    info = BundleInfo(
        run=run.name,
        compact=compacted,
        target_name=found.target,
        target=Target(backend="onnxruntime"),
        model="model.onnx",
        files={"model.onnx": "0" * 64},
        inputs=(input_record("image", (1, images.channels, height, width), "float32", images, baked=False),),
        outputs=output_records(
            {
                name: (1, task.channels, height, width) if task.dense else (1, task.channels)
                for name, task in run.tasks.items()
            },
            dict.fromkeys(run.tasks, "float32"),
            run.tasks,
            {},
        ),
        training=Training(tasks=bundle_tasks(run.tasks, run.recipe.tasks), preprocessing=images),
        recipe_sha256="0" * 64,
        plan_sha256=hashlib.sha256(b"{}").hexdigest() if compacted else None,
        versions={},
        created="2026-01-02T03:04:05+00:00",
    )
    (folder / "bundle.json").write_text(info.text())


def write_pair(folder: Path) -> tuple[SyntheticRun, SyntheticRun]:
    """A dense baseline and a compact run that went down the whole road."""
    dense = write_run(folder / "dense", make_recipe())
    compact = write_run(
        folder / "compact", make_recipe(), factor=0.99, compacted=True, exported=True, baseline=scaled(1.0)
    )
    return dense, compact
