"""Build the wheel and hold its contents against what it must and must not carry.

python tools/check_wheel.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
# Beside Python, what the package reads at run time.
SUFFIXES = {".py", ".typed", ".yaml", ".j2", ".css", ".js", ".pyi"}
NAMES = {"compactmtl/export/in_bundle/bundle.schema.json"}  # other files that it reads
# Bytes: a wheel of code and recipes is smaller, one with weights or data is not, however many modules there are.
LARGEST_FILE = 40_000  # unpacked
LARGEST_MEAN = 2_000  # packed, over all files


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
        large = [
            one
            for one in archive.infolist()
            if one.file_size > LARGEST_FILE and ".dist-info/" not in one.filename
        ]
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
    if (mean := wheel.stat().st_size / max(len(names), 1)) > LARGEST_MEAN:
        found.append(f"{mean:.0f} bytes a file, more than {LARGEST_MEAN}")
    return found


def main() -> int:
    """Print every fault; 1 if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        found = faults(build(Path(folder)))
    print("\n".join(found) or "the wheel carries what it must and nothing else")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
