"""A real run on four rooms, with two tasks of maps, trained for one step and compacted; built once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from compactmtl.config import resolve_recipe
from compactmtl.train import Run, compact_run, train

RECIPE = """
data: {name: scenes, size: [16, 24], batch_size: 4, options: {train: 4, val: 5}}
tasks:
  segmentation: {kind: segmentation, head: {kind: fcn, width: 4}}
  depth: {kind: depth, head: {kind: fcn, width: 4}}
model: {encoder: {name: test_resnet}}
train: {epochs: 1}
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A dense run without a compact model. Not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(RECIPE)
    return train(resolve_recipe(folder / "recipe.yaml"), folder / "dense")


@pytest.fixture(scope="session")
def compacted(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the run with dead channels, removed by surgery."""
    path = Path(shutil.copytree(trained.path, tmp_path_factory.mktemp("runs") / "compact"))
    weights = path / "checkpoints" / "best" / "weights.safetensors"
    state = load_file(weights)
    for key, value in state.items():
        # Half of the first filters of each residual block, with their batch norms.
        if key.endswith((".conv1.weight", ".bn1.weight", ".bn1.bias")) and ".layer" in key:
            value[len(value) // 2 :] = 0
    save_file(state, weights)
    run = Run.open(path)
    compact_run(run)
    return run
