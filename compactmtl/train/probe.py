"""What a run's frozen encoder is worth to fresh predictors: runs/<name>/probe.json."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import BEST, CHECKPOINTS, PROBE
from compactmtl.artifacts.lock import writing
from compactmtl.balancing.universality import loss_gap
from compactmtl.config.sources import as_deployed
from compactmtl.data import build_loader, load_dataset
from compactmtl.data.inputs import given, to_device
from compactmtl.errors import ConfigError
from compactmtl.graph.float32 import float32_products
from compactmtl.models import LinearHead, MultiTaskModel, OwnModel
from compactmtl.models.features import encoder_name, last_map
from compactmtl.models.multitask import TaskEncoders
from compactmtl.runs.checkpoint import checked_weights
from compactmtl.runs.probe import STANDARD, Probe, Question, TaskProbe, read_answer, to_json
from compactmtl.runs.run import Run
from compactmtl.tasks import Task
from compactmtl.verify.accuracy import evaluating
from compactmtl.verify.probe import METRICS, Target, probe_features

TARGETS: dict[str, Target] = {"class": "class", "scalar": "scalar"}  # kinds of target that can be probed


def probe_run(
    run: Run,
    question: Question = STANDARD,
    *,
    jobs: int = 1,
    again: bool = False,
    device: torch.device | str = "cpu",
) -> Probe:
    """Probe the encoder of the run's best checkpoint and write probe.json; one of the same question is read back.

    Predictors are fitted on the training split as it is without augmentation, and scored on val. Images pass the
    encoder in eval mode; a map is averaged. `jobs` is the number of processes that fit; with `again` nothing is read
    back. The encoder runs on `device`, and so do the random heads; the predictors are scikit-learn's.

    Raises ArtifactError where the run has no checkpoint, ConfigError where none of its tasks can be probed,
    MissingDependencyError without scikit-learn, HeldError where another process is writing into the run.
    """
    with writing(run.path, "probe"):  # before the work, so that it is not done for nothing
        pass
    model = run.load_plain().to(device)
    if encoder_name(model) is None:
        raise ConfigError(
            f"{run.path} cannot be probed: the network of model.factory shows no encoder",
            "make the shared layers its submodule `encoder`, or name them in model.encoder_path, and train again",
        )
    asked = question.to_json(checked_weights(run.path / CHECKPOINTS / BEST))
    answer = None if again else read_answer(run.path / PROBE)
    if answer is not None and answer[0] == asked:
        return answer[1]
    samples, seed = question.samples, question.seed
    chosen, skipped = _choose(run.tasks, model)
    splits = {split: _features(run, model, split, samples, seed) for split in ("train", "val")}
    results = {}
    for name, task in chosen.items():
        train, val = (_known(task, *splits[split][name]) for split in ("train", "val"))
        target = TARGETS[task.spec.kind]
        scores = probe_features(
            (train[0].numpy(), train[1].numpy()),
            (val[0].numpy(), val[1].numpy()),
            target,
            predictors=question.predictors,
            seed=seed,
            jobs=jobs,
        )
        head = None if isinstance(model, OwnModel) else model.heads[name]
        gap = None
        if isinstance(head, LinearHead):
            on_device = [(one[0].to(device), one[1].to(device)) for one in (train, val)]
            gap = loss_gap(head, task.loss, *on_device, dummies=question.dummies, seed=seed)
        results[name] = TaskProbe(METRICS[target], scores, gap)
    probe = Probe(
        results, skipped, {split: len(next(iter(features.values()))[0]) for split, features in splits.items()}
    )
    with writing(run.path, "probe"):
        write_text(run.path / PROBE, json.dumps({"question": asked, **to_json(probe)}, indent=2) + "\n")
    return probe


def _choose(tasks: dict[str, Task], model: MultiTaskModel) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks that can be probed, and why the others cannot. Raises ConfigError where none can."""
    skipped = {
        name: f"a target of kind {task.spec.kind}, not one value an image"
        for name, task in tasks.items()
        if task.spec.kind not in TARGETS
    }
    chosen = {name: task for name, task in tasks.items() if name not in skipped}
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ConfigError(
            f"no task of the run can be probed ({reasons})", "probe a run with classes or numbers"
        )
    return chosen, skipped


def _features(
    run: Run, model: MultiTaskModel, split: str, samples: int | None, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each task the features (N, C) that its head reads, averaged over a map, and its targets."""
    config = run.recipe.data
    dataset = load_dataset(as_deployed(config), "train" if split == "train" else "val")
    loader = build_loader(dataset, config, train=False, seed=seed)
    features: dict[str, list[Tensor]] = {name: [] for name in run.tasks}
    targets: dict[str, list[Tensor]] = {name: [] for name in run.tasks}
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), float32_products():
        for batch in loader:
            maps = model.features(to_device(given(batch), device))
            for name, task in run.tasks.items():
                last = last_map(maps[name] if isinstance(model.encoder, TaskEncoders) else maps)
                features[name].append((last.float() if last.ndim == 2 else last.float().mean((2, 3))).cpu())
                targets[name].append(batch["targets"][task.target])
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    kept = order[: samples if samples is not None and split == "train" else None]
    return {
        name: (torch.cat(features[name])[kept].clone(), torch.cat(targets[name])[kept].clone())
        for name in run.tasks
    }


def _known(task: Task, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The samples whose target is known."""
    known = task.known(targets)
    return features[known], targets[known]
