"""Lightning and transformers are loaded by their own callback alone, and where they are missing it says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # it loads torch anew
def test_nothing_else_loads_them() -> None:
    code = (
        "import sys, compactmtl, compactmtl.loops, compactmtl.train, compactmtl.cli.main\n"
        "compactmtl.Shrinking\n"
        "print(sorted({'lightning', 'pytorch_lightning', 'transformers', 'accelerate'} & sys.modules.keys()))"
    )
    assert run(code).strip() == "[]"


@pytest.mark.slow  # it loads torch anew
def test_a_missing_package_is_named_with_its_extra() -> None:
    code = (
        "import sys\n"
        "sys.modules['lightning'] = sys.modules['transformers'] = None\n"
        "import compactmtl.loops as loops\n"
        "from compactmtl.errors import MissingDependencyError\n"
        "for name in ('LightningShrinking', 'TransformersShrinking'):\n"
        "    try:\n"
        "        getattr(loops, name)\n"
        "    except MissingDependencyError as error:\n"
        "        print(error.exit_code, error.hint)\n"
    )
    assert run(code).splitlines() == [
        "3 pip install 'compactmtl[lightning]'",
        "3 pip install 'compactmtl[transformers]'",
    ]
