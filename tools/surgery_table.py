"""The table of the bench of surgery: what its JSONL files hold, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.surgery_zoo import PATTERNS

EXACT = 1e-4  # largest |difference| as a share of the largest |output|
VARIES = 1e-3  # a network whose masked output moves less than this with the input proves nothing


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The version that a file is of, and its rows. A last line that was cut off is left out."""
    lines = path.read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    if not found or "version" not in found[0]:
        raise SystemExit(f"{path}: does not say which version it is of; begin a new file with --out")
    return found[0]["version"], found[1:]


def removed_share(row: dict[str, Any], macs: float) -> float | None:
    """What went as a share of what could go (1 - bound)."""
    return (1 - macs) / (1 - row["bound"]) if row["bound"] < 1 else None


def _shares(rows: list[dict[str, Any]], macs: Callable[[dict[str, Any]], float]) -> list[float]:
    return [share for row in rows if (share := removed_share(row, macs(row))) is not None]


def _figures(shares: list[float]) -> str:
    return f"{np.median(shares):.2f} / {np.percentile(shares, 10):.2f}" if shares else "–"


def table(paths: Sequence[Path]) -> str:
    """Markdown: one row a pattern, then every network whose result is not exact or that could not be masked."""
    files = [read(path) for path in paths]
    if any(found != files[0][0] for found, _ in files):
        raise SystemExit(
            "the files are of different versions: " + "; ".join(str(found) for found, _ in files)
        )
    rows = [row for _, own in files for row in own]
    lines = [
        "| pattern | networks | exact | wrong | crashed | removable MACs gone, median / 10th percentile | with gather "
        "| latency, plain → with gather | Torch-Pruning: exact | wrong | crashed | its median / 10th percentile there "
        "| ours there |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [_pattern(pattern, [r for r in rows if r["pattern"] == pattern]) for pattern in PATTERNS]
    lines += ["", _version(files[0][0], rows), "", *(_remark(row) for row in rows if _remark(row))]
    return "\n".join(lines)


def _pattern(pattern: str, rows: list[dict[str, Any]]) -> str:
    chosen = [r for r in rows if "not_masked" not in r]
    ran = [r for r in chosen if "failure" not in r]
    fine = [r for r in ran if r["varies"] > VARIES]
    exact = [r for r in fine if is_exact(r)]
    asked = [r for r in fine if "tp" in r]
    theirs = [r for r in asked if is_exact(r["tp"])]
    their_crashes = sum("failure" in r["tp"] for r in asked)
    gathered = [r for r in fine if "gather" in r and is_exact(r["gather"])]
    speed = "–"
    if gathered:
        plain, thinned = (
            [own["latency"] for own in side] for side in (gathered, [r["gather"] for r in gathered])
        )
        speed = f"{np.median(plain):.2f}× → {np.median(thinned):.2f}×"

    def counted(number: int) -> str:
        return str(number) if asked else "–"

    wrong = sum(not is_exact(r) or ("gather" in r and not is_exact(r["gather"])) for r in fine)
    return (
        f"| {pattern} | {len(fine)} | {len(exact)} | {wrong} | {len(chosen) - len(ran)} "
        f"| {_figures(_shares(exact, lambda r: r['macs']))} "
        f"| {_figures(_shares(gathered, lambda r: r['gather']['macs']))} | {speed} "
        f"| {counted(len(theirs))} | {counted(len(asked) - len(theirs) - their_crashes)} | {counted(their_crashes)} "
        f"| {_figures(_shares(theirs, lambda r: r['tp']['macs']))} "
        f"| {_figures(_shares(theirs, lambda r: r['macs']))} |"
    )


def is_exact(result: dict[str, Any]) -> bool:
    """Whether an error was measured and is small: NaN is not, and nor is a failure."""
    return "failure" not in result and result["error"] <= EXACT


def _version(found: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    days = sorted({row["date"] for row in rows}) or ["no rows"]
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    changed = " with changes" if found["changed"] else ""
    return (
        f"One run of commit {found['commit'][:12]}{changed}, {days[0]} to {days[-1]}, {packages}, "
        f"{found['threads']} thread of {found['processor']}."
    )


def _remark(row: dict[str, Any]) -> str:
    what = f"- {row['network']}, {row['pattern']}: "
    if "not_masked" in row:
        return what + f"no mask ({row['not_masked']})"
    if "failure" in row:
        return what + f"failed ({row['failure']})"
    if row["varies"] <= VARIES:
        return what + "the masks made it constant, left out"
    if not row["error"] <= EXACT:
        return what + f"wrong by {row['error']:.1e}"
    if "gather" in row and not is_exact(row["gather"]):
        return what + f"wrong by {row['gather']['error']:.1e} with gather"
    if row.get("float32", 0.0) > EXACT:
        return what + f"off by {row['float32']:.1e} in float32 and {row['error']:.1e} in float64"
    return ""
