"""A run on disk as training leaves it, of an untrained model: what comes after training needs no more.

Its batch norms know the images: with the statistics they are born with, the outputs hardly depend on the input, and
whatever compares them would pass.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compactmtl.artifacts.run_folder import create_folder
from compactmtl.config import dump_recipe, resolve_recipe
from compactmtl.data import build_loader, load_dataset
from compactmtl.runs.checkpoint import load_summary, save_best
from compactmtl.runs.identity import recipe_hash
from compactmtl.runs.meta import new_meta
from compactmtl.runs.model import fresh_model
from compactmtl.tasks import build_tasks
from compactmtl.train import Run, compact_run

SCENES = """
data: {name: scenes, size: [16, 24], batch_size: 4, options: {train: 4, val: 5}}
tasks:
  segmentation: {kind: segmentation, head: {kind: fcn, width: 4}}
  depth: {kind: depth, head: {kind: fcn, width: 4}}
model: {encoder: {name: test_resnet}}
"""


def write_run(folder: Path, recipe: str = SCENES) -> Run:
    """Write a run with the recipe's freshly drawn model as its best checkpoint."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    path.write_text(recipe)
    resolved = resolve_recipe(path)
    dataset = load_dataset(resolved.recipe.data, "val")
    torch.manual_seed(0)
    model = fresh_model(resolved.recipe, build_tasks(resolved.recipe.tasks, dataset.specs))
    open_branches(model)
    settle_norms(model, next(iter(build_loader(dataset, resolved.recipe.data, train=False, seed=0)))["image"])
    create_folder(folder, dump_recipe(resolved.recipe), new_meta(resolved, dataset.specs), overwrite=False)
    summary = {
        "recipe_hash": recipe_hash(resolved.recipe),
        "epoch": 1,
        "step": 1,
        "score": 0.0,
        "metrics": {},
    }
    save_best(folder / "checkpoints" / "best", model, summary)
    return Run.open(folder)


def open_branches(model: nn.Module) -> None:
    """Undo timm's start of residual branches at zero: surgery would take them out whole, as it does of no trained network."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.any():
                module.weight.fill_(1)


def settle_norms(model: nn.Module, images: Tensor) -> None:
    """Give every batch norm the mean and variance of what it sees on the images."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    former = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(images)
    model.eval()
    for norm, momentum in zip(norms, former, strict=True):
        norm.momentum = momentum


def compact_half(run: Run) -> Run:
    """Zero half of the first filters of each residual block, with their batch norms, and compact the run."""
    best = run.path / "checkpoints" / "best"
    state = load_file(best / "weights.safetensors")
    for key, value in state.items():
        if key.endswith((".conv1.weight", ".bn1.weight", ".bn1.bias")) and ".layer" in key:
            value[len(value) // 2 :] = 0
    save_best(best, state, load_summary(best))
    compact_run(run)
    return run
