"""A tiny recipe on rendered rooms that trains in a second or two."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from compactmtl.config import Resolved, resolve_recipe
from compactmtl.train import Run, train

TINY = """\
description: tiny
data:
  name: scenes
  size: [32, 48]
  batch_size: 4
  augment: {flip: true, zoom: [1.0, 1.2], color: 0.1}
  options: {train: 14, val: 4}
tasks:
  segmentation: {kind: segmentation, head: {kind: fcn, width: 8, dropout: 0.2}}
  depth: {kind: depth, head: {kind: fcn, width: 8}}
model:
  encoder:
    name: resnet10t
    options: {channels: [16, 16, 24, 32], stem_width: 16}
    output_stride: 16
train:
  epochs: 3
  optimizer: {lr: 2e-3}
  threads: 1
"""

# dropout, an uncertainty balancer, factors and a sparsity controller: all that has a state of its own
EVERYTHING = """
balancing: {name: uncertainty}
overparam: {kind: svd}
sparsity:
  selective: {mac_reduction: 0.3, start: 0.1, end: 0.6, every: 2, min_channels: 4}
surgery: {align: 4}
"""


@pytest.fixture(scope="session")
def everything() -> str:
    """Sections that give the tiny recipe every part with a state of its own."""
    return EVERYTHING


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Resolved]:
    """tiny(*overrides, more=YAML) -> the resolved tiny recipe."""

    def make(*overrides: str, more: str = "") -> Resolved:
        path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
        path.write_text(TINY + more)
        return resolve_recipe(path, list(overrides))

    return make


@pytest.fixture(scope="session")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Resolved]
) -> tuple[Resolved, Run]:
    """A finished run of the tiny recipe with everything; not to be changed."""
    resolved = tiny(more=EVERYTHING)
    return resolved, train(resolved, tmp_path_factory.mktemp("whole") / "run", console=Console(quiet=True))


@pytest.fixture
def quiet() -> Callable[[], Console]:
    """A console that keeps its lines to itself; quiet().file.getvalue() has them."""
    return lambda: Console(file=io.StringIO(), width=200)
