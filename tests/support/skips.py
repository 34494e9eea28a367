"""In continuous integration a test skips only where this list says so; any other skip fails the run.

A skip is silent: a package that is missing from the extra `dev` would take its tests away and nobody would know.
conftest.py takes the two hooks; `CI=true` turns them on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Allowed:
    """A skip that a CI run may have: where, what pytest says, and why it is no loss there."""

    where: str  # start of a test's id
    says: str  # regular expression of the whole reason
    why: str


ALLOWED = (
    Allowed(
        "tests/gpu/",
        r"(tensorrt|tensorrt-rtx|CUDA|CUDAExecutionProvider|TensorrtExecutionProvider|NvTensorRTRTXExecutionProvider): .+",
        "the machine has no NVIDIA GPU",
    ),
    Allowed(
        "tests/",
        r"no wheels of TensorRT for RTX for \w+ on (?!x86_64|AMD64)\w+",
        "NVIDIA publishes them for Linux and Windows on x86-64 alone",
    ),
    Allowed(
        "tests/sweep/test_workers.py::",
        r"PostgreSQL: .+",
        "no PostgreSQL server is installed, or nobody but root is there to run one",
    ),
    Allowed(
        "tests/train/test_mlflow.py::",
        r"MLflow is not installed.*",
        "the extra mlflow is not part of dev",
    ),
    Allowed(
        "tests/train/test_compiled.py::",
        r"no C\+\+ compiler: .+",
        "torch.compile generates code only where one is installed",
    ),
    Allowed(
        "tests/backends/tensorrt_rtx/test_entry.py::",
        r"the system does not tell a process's peak",
        "a kernel without /proc/self/clear_refs, as in some sandboxes",
    ),
    Allowed(
        "tests/",
        r"a small disk: .+",
        "only root can mount one, and not in every container",
    ),
    Allowed(
        "tests/distributed/test_machines.py::",
        r"two machines: .+",
        "only root can make network namespaces, and not in every container",
    ),
    Allowed(
        "tests/tools/test_soak.py::",
        r"reads /proc",
        "a system other than Linux",
    ),
    Allowed(
        "tests/cli/test_torchrun.py::",
        r"finds the processes in /proc",
        "a system other than Linux",
    ),
    Allowed(
        "tests/backends/test_openvino.py::",
        r"this processor has no (bf16|fp16)",
        "OpenVINO computes 16-bit types only where the processor does",
    ),
    Allowed(
        "tests/export/precision/test_apply.py::test_bf16_graph_runs_where_bf16_does",
        r"this processor has no bf16",
        "as above",
    ),
    Allowed(
        "tests/export/precision/test_pipeline.py::test_fp16_pipeline_in_openvino_with_a_free_batch",
        r"this processor has no fp16",
        "as above",
    ),
)


def in_ci() -> bool:
    """Whether skips are judged: CI services set CI=true, and so does .ci/run."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def is_allowed(where: str, reason: str) -> bool:
    """Whether the list has a skip of the test `where` for `reason`."""
    return any(where.startswith(one.where) and re.fullmatch(one.says, reason) for one in ALLOWED)


def judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip that the list lacks into a failure that names it."""
    # an expected failure is reported as skipped as well: it ran
    if not in_ci() or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not is_allowed(report.nodeid, reason):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} skips in CI: {reason}\n"
            "Install what it needs (extra `dev`, or .ci/run), or add the skip with its reason to tests/support/skips.py."
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a test that skips itself."""
    report = yield
    judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge a file that skips whole."""
    report = yield
    judge(report)
    return report
