"""The worked examples of the how-to pages, run as they stand on data made here: each ends in a verified bundle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow  # a training and an export each

ROOT = Path(__file__).parents[2]
PAGES = ["own-loop", "own-loop-lightning", "own-loop-transformers"]


def example(page: str) -> str:
    """The longest block of Python of a page."""
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    return max(re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL), key=len)


def write_rooms(path: Path, count: int = 24, size: int = 64) -> None:
    """Pictures of three vertical bands whose order is drawn: the class is the band's color, the depth its brightness."""
    generator = torch.Generator().manual_seed(0)
    images, classes = [], []
    for _ in range(count):
        order = torch.randperm(3, generator=generator)
        labels = order.repeat_interleave(-(-size // 3))[:size].expand(size, size)
        image = 0.1 * torch.randn(3, size, size, generator=generator)
        images.append(image + torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1))
        classes.append(labels)
    labels = torch.stack(classes)
    rooms = {"images": torch.stack(images), "classes": labels, "depth": labels[:, None].float() / 2}
    torch.save(rooms, path)


@pytest.mark.timeout(900)  # half a minute alone
@pytest.mark.parametrize("page", PAGES)
def test_the_example_ends_in_a_verified_bundle(page: str, tmp_path: Path) -> None:
    write_rooms(tmp_path / "rooms.pt")
    (tmp_path / "example.py").write_text(example(page), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bundle" / "verification.json").read_text())
    assert found["passed"]
    assert any(gate["gate"].startswith("latency") for gate in found["gates"])


def test_the_loop_is_as_short_as_it_is_said_to_be() -> None:
    lines = [line for line in example("own-loop").splitlines() if line.strip()]
    assert len(lines) <= 60
