"""Continuous integration fails on a skip that nobody listed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.skips import ALLOWED, is_allowed

ROOT = Path(__file__).resolve().parents[2]
# One file for each way to skip; they run together, since a process takes seconds to start.
SKIPS = {
    "mark": "import pytest\n@pytest.mark.skip(reason='why not')\ndef test_it(): pass\n",
    "condition": "import pytest\n@pytest.mark.skipif(True, reason='why not')\ndef test_it(): pass\n",
    "call": "import pytest\ndef test_it(): pytest.skip('why not')\n",
    "fixture": "import pytest\n@pytest.fixture\ndef one(): pytest.skip('why not')\ndef test_it(one): pass\n",
    "package": "import pytest\ndef test_it(): pytest.importorskip('no_such_package', reason='why not')\n",
    "file": "import pytest\npytest.importorskip('no_such_package', reason='why not')\ndef test_it(): pass\n",
}
RUNS = "import pytest\n@pytest.mark.xfail\ndef test_known(): assert False\ndef test_it(): pass\n"


def outcomes(folder: Path, ci: str) -> str:
    for name, text in SKIPS.items():
        (folder / f"test_{name}.py").write_text(text, encoding="utf-8")
    (folder / "test_runs.py").write_text(RUNS, encoding="utf-8")
    settings = folder / "pytest.ini"  # none of the project's
    settings.write_text("[pytest]\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "-p",
        "tests.support.skips",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-c", str(settings), "--rootdir", str(folder), "--continue-on-collection-errors", str(folder)]
    env = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env).stdout


@pytest.mark.slow
def test_a_skip_that_is_not_listed_fails_in_ci(tmp_path: Path) -> None:
    shown = outcomes(tmp_path, "true")
    for name in SKIPS:
        assert f"test_{name}.py" in shown
    assert shown.count("skips in CI: why not") >= len(SKIPS)
    # a skip before a test's own code, or of a whole file, becomes an error
    assert "2 failed, 1 passed, 1 xfailed, 4 errors" in shown


@pytest.mark.slow
def test_elsewhere_it_skips(tmp_path: Path) -> None:
    assert "1 passed, 6 skipped, 1 xfailed" in outcomes(tmp_path, "")


def test_a_listed_skip_needs_its_place_and_its_reason() -> None:
    here = "tests/backends/test_openvino.py::test_it[bf16]"
    assert is_allowed(here, "this processor has no bf16")
    assert not is_allowed(here, "could not import 'openvino'")
    assert not is_allowed("tests/export/test_run.py::test_it", "this processor has no bf16")


@pytest.mark.parametrize("allowed", ALLOWED, ids=lambda one: one.where)
def test_the_list_names_files_that_exist(allowed: object) -> None:
    where = next(one for one in ALLOWED if one is allowed)
    file, _, name = where.where.partition("::")
    assert (ROOT / file).exists()
    assert not name or f"def {name}(" in (ROOT / file).read_text("utf-8")
    assert where.why
