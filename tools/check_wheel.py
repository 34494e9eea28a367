"""Build the wheel and hold its contents against what it must and must not carry.

python tools/check_wheel.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
# Beside Python, what the package reads at run time.
SUFFIXES = {".py", ".typed", ".yaml", ".j2", ".css", ".js", ".pyi"}
NAMES = {"compactmtl/export/in_bundle/bundle.schema.json"}  # other files that it reads
LARGEST_FILE = 30_000  # bytes; a module has about 400 lines
# Code and recipes pack to half of their size or less, weights do not, as text neither: base64 packs to three quarters.
SMALL, MOST_PACKED = (
    2_000,
    0.6,
)  # bytes from which on a file is looked at, and the share that may be left of it


def build(folder: Path) -> Path:
    """Build the wheel of this checkout into `folder`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def faults(wheel: Path, root: Path = ROOT) -> list[str]:
    """What the wheel lacks of the checkout's package, recipes and targets, and what it has beyond them."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {PurePosixPath(name).name for name in archive.namelist() if ".dist-info/" in name}
        own = [one for one in archive.infolist() if ".dist-info/" not in one.filename]
        large = [one for one in own if one.file_size > LARGEST_FILE]
        dense = {
            one.filename: len(zlib.compress(archive.read(one))) / one.file_size
            for one in own
            if one.file_size > SMALL and one not in large
        }
        entry_points = [
            archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")
        ]
    expected = {
        path.relative_to(root).as_posix()
        for path in (root / "compactmtl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for folder in ("recipes", "export"):
        expected |= {
            f"compactmtl/_bundled/{path.relative_to(root).as_posix()}"
            for path in (root / folder).rglob("*.yaml")
        }
    found = [f"missing: {name}" for name in sorted(expected - names)]
    found += [f"not of this checkout: {name}" for name in sorted(names - expected)]
    found += [
        f"neither code nor recipe: {name}"
        for name in sorted(names)
        if PurePosixPath(name).suffix not in SUFFIXES and name not in NAMES
    ]
    found += [
        f"missing: {name}" for name in ("METADATA", "LICENSE", "entry_points.txt") if name not in metadata
    ]
    if not any("compactmtl = compactmtl.cli.main:main" in text for text in entry_points):
        found.append("missing: the command compactmtl")
    if "compactmtl/py.typed" not in names:
        found.append("missing: compactmtl/py.typed")
    found += [f"{one.filename}: {one.file_size} bytes, more than {LARGEST_FILE}" for one in large]
    found += [
        f"{name}: packs to {share:.0%}, more than {MOST_PACKED:.0%}: no code does"
        for name, share in dense.items()
        if share > MOST_PACKED
    ]
    return found


def main() -> int:
    """Print every fault; 1 if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        found = faults(build(Path(folder)))
    print("\n".join(found) or "the wheel carries what it must and nothing else")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
