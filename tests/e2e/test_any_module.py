"""docs/how-to/export-any-module.md: its detector and its commands run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from compactmtl.export import Bundle
from tests.e2e.test_tutorial import run_line

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "export-any-module.md"


@pytest.mark.slow
def test_the_detector_ends_in_a_verified_bundle_within_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (script,) = re.findall(r'^```python title="detector\.py"\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("detector.py").write_text(script, encoding="utf-8")
    for line in commands.splitlines():
        run_line(line)

    bundle = Bundle.open("detector")
    found = bundle.verification
    assert bundle.doubt == "" and found is not None
    assert found.accuracy.artifact["objects"]["hit"] > 0.8  # it learned to find them
    assert {gate.gate for gate in found.gates} == {"parity", "accuracy", "latency"}
    assert Path("detector/report.html").is_file()
    scores = np.load(tmp_path / "seen" / "golden.objects.npy")
    assert scores.shape == (1, 16, 16)
    assert bundle.info.outputs[0].meaning.startswith("score of an object")
    assert "did not say" in bundle.info.outputs[1].meaning
