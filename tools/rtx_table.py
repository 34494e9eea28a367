"""The table of the bench of TensorRT for RTX: what its JSONL file holds, in Markdown."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

PER_NETWORK = 20  # precisions times capabilities


def read(path: Path) -> tuple[dict[str, Any], int, list[dict[str, Any]]]:
    """The version that a file is of, how many networks there are, and its rows. A last line that was cut off is left out."""
    lines = path.read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    if not found or "version" not in found[0]:
        raise SystemExit(f"{path}: does not say which version it is of; begin a new file with --out")
    return found[0]["version"], found[0]["networks"], found[1:]


def table(path: Path) -> str:
    """Markdown: counts by precision and capability, each network's figures, and why builds were refused or failed."""
    version, networks, rows = read(path)
    whole = networks * 2 * PER_NETWORK
    share = (
        "All builds of the bench are in it."
        if (made := sum(bool(row["recipes"]) for row in rows)) >= whole
        else f"**Partial**: {made} of {whole} builds were made."
    )
    lines = [
        f"TensorRT-RTX {version['tensorrt_rtx']}, torch {version['torch']}, {version['processor']}. {share}",
        "",
        *_counts(rows),
        "",
        *_networks(rows),
        "",
        *_reasons(rows),
    ]
    return "\n".join(lines)


def _counts(rows: list[dict[str, Any]]) -> list[str]:
    capabilities = sorted({row["capability"] for row in rows})
    lines = [
        "Accepted / refused before the build / failed in the builder:",
        "",
        "| precision | " + " | ".join(f"SM{round(one * 10)}" for one in capabilities) + " |",
        "| --- |" + " ---: |" * len(capabilities),
    ]
    for precision in dict.fromkeys(row["precision"] for row in rows):
        cells = []
        for capability in capabilities:
            counts = Counter(
                row["outcome"]
                for row in rows
                if row["precision"] == precision and row["capability"] == capability
            )
            cells.append(
                f"{counts['accepted']} / {counts['refused']} / {counts['failed'] + counts['not exported']}"
            )
        lines.append(f"| {precision} | {' | '.join(cells)} |")
    return lines


def _networks(rows: list[dict[str, Any]]) -> list[str]:
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    lines = [
        "Seconds of a build and MB of the engine, smallest and largest over the capabilities that accept it, and which do"
        " not:",
        "",
        f"| network (first recipe that has it) | recipes | form | {' | '.join(precisions)} |",
        "| --- | ---: | --- |" + " --- |" * len(precisions),
    ]
    for network, form in sorted(dict.fromkeys((row["network"], row["form"]) for row in rows)):
        own = [row for row in rows if (row["network"], row["form"]) == (network, form)]
        cells = [_cell([row for row in own if row["precision"] == precision]) for precision in precisions]
        lines.append(f"| {network} | {len(own[0]['recipes'])} | {form} | {' | '.join(cells)} |")
    return lines


def _cell(rows: list[dict[str, Any]]) -> str:
    built = [row for row in rows if row["outcome"] == "accepted"]
    if not built:
        return "none" if rows else "–"
    figures = f"{_range(built, 'build_seconds')} s, {_range(built, 'megabytes')} MB"
    without = [str(row["capability"]) for row in rows if row["outcome"] != "accepted"]
    return f"{figures}, not {', '.join(without)}" if without else figures


def _range(rows: list[dict[str, Any]], key: str) -> str:
    """Smallest and largest, one number where they are shown alike."""
    values = [row[key] for row in rows]
    shown = [f"{value:.1f}" for value in (min(values), max(values))]
    return shown[0] if shown[0] == shown[1] else "–".join(shown)


def _reasons(rows: list[dict[str, Any]]) -> list[str]:
    """Each reason once, with how many builds it stopped; what a graph's nodes are called is left out."""
    reasons = Counter(
        (row["outcome"], row["why"].split(": the model has them")[0].split(" at ")[0])
        for row in rows
        if row["outcome"] != "accepted"
    )
    if not reasons:
        return ["Nothing was refused."]
    lines = ["| outcome | reason | builds |", "| --- | --- | ---: |"]
    for (outcome, why), count in reasons.most_common():
        lines.append(f"| {outcome} | {' '.join(why.split()).replace('|', '/')} | {count} |")
    return lines
