"""What all tests share: one thread, fixed seeds, no network, and hypothesis without a clock."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads cost more than they give
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would fetch weights fails instead

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.skips"]  # in CI, a skip that is not listed there fails

# A slow or shared machine must not fail a property: no deadline. Derandomized: a red test is red for everyone.
settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("project")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one process, where they share its fixtures; but the recipes' by data set.

    In one process alone the recipes' would outlast all others.
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file, _, name = nodeid.partition("::")
            data, _, _ = name.partition("/")
            return f"{file}::{data}" if "test_recipes" in file else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _strict_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a rule of the channel graph fails the test; for users it is a barrier."""
    if "compactmtl.graph.analysis" in sys.modules:
        monkeypatch.setattr("compactmtl.graph.analysis.STRICT", True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed Python, numpy and, where a test has loaded it, torch."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the session's own, so that no test finds or leaves anything in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
