"""A Python that has numpy, Pillow and one runtime, with what pip would install for them, and nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement


def write_packages(folder: Path, names: Sequence[str]) -> Path:
    """A folder with links to the distributions `names` and to all that they require."""
    folder.mkdir()
    wanted, seen = list(names), set[str]()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            # not asked for by whatever works here
            continue
        for file in distribution.files or ():
            top = file.parts[0]
            if top != ".." and not (folder / top).exists() and not top.startswith("__pycache__"):
                source = Path(str(distribution.locate_file(top))).resolve()
                (folder / top).symlink_to(source, target_is_directory=source.is_dir())
        needs = (Requirement(line) for line in distribution.requires or ())
        wanted += [one.name for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
    return folder


def run_clean(
    packages: Path, *words: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`python WORDS` that sees the standard library and `packages` alone."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-S", "-B", *map(str, words)],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
