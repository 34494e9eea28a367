"""Fixtures of the report's tests: synthetic runs in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compactmtl.config.recipe import Recipe
from tests.support.synthetic_runs import SyntheticRun, make_recipe, write_pair, write_run
from tests.support.tiny_val import TinySplits


@pytest.fixture
def splits() -> TinySplits:
    return TinySplits()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[SyntheticRun, SyntheticRun]:
    """A dense baseline and a compact run that went through the whole pipeline."""
    return write_pair(tmp_path / "runs")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., SyntheticRun]:
    """Write a run folder by name."""

    def make(name: str, recipe: Recipe | None = None, **options: Any) -> SyntheticRun:
        return write_run(tmp_path / "runs" / name, recipe or make_recipe(), **options)

    return make
