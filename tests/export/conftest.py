"""Runs that are built once for all tests of the export."""

from __future__ import annotations

import pytest

from compactmtl.train import Run
from tests.support.real_runs import compact_half, write_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without a compact model. Not to be written to."""
    return write_run(tmp_path_factory.mktemp("runs") / "dense")


@pytest.fixture(scope="session")
def compacted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with channels that are dead, and removed by surgery."""
    return compact_half(write_run(tmp_path_factory.mktemp("runs") / "compact"))
