"""What all tests share: one thread, fixed seeds, no network, and hypothesis without a clock."""

from __future__ import annotations

import os
import random
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads cost more than they give
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would fetch weights fails instead

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A slow or shared machine must not fail a property: no deadline. Derandomized: a red test is red for everyone.
settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process, where they share its fixtures, unless they name a group of their own."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed Python, numpy and, where a test has loaded it, torch."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
