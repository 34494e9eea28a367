"""A tiny recipe on rendered rooms that trains in a second or two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from compactmtl.config import Resolved, resolve_recipe

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

Make = Callable[..., Resolved]


@pytest.fixture
def tiny(tmp_path: Path) -> Make:
    """tiny(*overrides, more=YAML) -> the resolved tiny recipe."""

    def make(*overrides: str, more: str = "") -> Resolved:
        path = tmp_path / "tiny.yaml"
        path.write_text(TINY + more)
        return resolve_recipe(path, list(overrides))

    return make


@pytest.fixture
def quiet() -> Callable[[], object]:
    """A console that keeps its lines to itself; quiet().file.getvalue() has them."""
    import io

    from rich.console import Console

    return lambda: Console(file=io.StringIO(), width=200)


__all__: Sequence[str] = ["Make"]
