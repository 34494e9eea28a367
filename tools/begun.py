"""What the results in a bench's folder were made with: those of other settings must not stand in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from compactmtl.artifacts.files import write_text

SETTINGS = "settings.json"


def differs(out: Path, settings: Mapping[str, object]) -> str:
    """Why the bench cannot go on in `out`, which is begun if it was not; empty where it can."""
    file, own = out / SETTINGS, json.loads(json.dumps(settings))
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(own, indent=1) + "\n")
        return ""
    there = json.loads(file.read_text(encoding="utf-8"))
    other = [
        f"{key} {there.get(key)!r}, now {own.get(key)!r}"
        for key in sorted({*there, *own})
        if there.get(key) != own.get(key)
    ]
    return f"{out} was begun with {'; '.join(other)}: give another --out" if other else ""
