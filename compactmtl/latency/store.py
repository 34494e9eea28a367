"""Measurements of layers, kept in the user's cache: a second network of the same layers is not measured anew."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compactmtl.artifacts.files import parse_json, write_text
from compactmtl.data.cache import user_cache
from compactmtl.errors import CompactError, CompactWarning
from compactmtl.latency.fit import Point
from compactmtl.sparsity.latency import LatencyTable

VERSION = 3  # 1 did not know of which network a point is, 2 gave steps to wrong layers: such files are measured anew
MOST = 200  # points kept of a layer


@dataclass
class Store:
    """Points by a layer's signature, of one device and one set of `conditions`: target, precision, threads, versions."""

    conditions: Mapping[str, object]
    folder: Path = field(default_factory=lambda: user_cache() / "latency")

    def __post_init__(self) -> None:
        self._points: dict[str, list[Point]] = {}
        try:
            document = parse_json(self.path.read_text(encoding="utf-8"))
            if document["version"] == VERSION and document["conditions"] == json.loads(self._conditions):
                self._points = {
                    signature: [_point(o, i, ms, network) for o, i, ms, network in points]
                    for signature, points in document["layers"].items()
                }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            self._points = {}  # none yet, or damaged: measured again

    @property
    def _conditions(self) -> str:
        return json.dumps(dict(self.conditions), sort_keys=True, default=str)

    @property
    def path(self) -> Path:
        """The file of these conditions."""
        digest = hashlib.sha256(self._conditions.encode()).hexdigest()[:20]
        return self.folder / f"{digest}.json"

    def table(self, key: str) -> LatencyTable | None:
        """A network's table that was measured before: a resumed training and another seed choose by the same one."""
        try:
            return LatencyTable.load(self._table_path(key))
        except (OSError, CompactError):  # none yet, or damaged: measured again
            return None

    def keep_table(self, key: str, table: LatencyTable, *, anew: bool = False) -> LatencyTable:
        """Keep a network's table, and return it. Where another process was first, its table is everyone's: trainings that
        began with it are resumed with it. `anew` puts it in that one's place.
        """
        if not anew and (known := self.table(key)) is not None:
            return known
        self._write(self._table_path(key), table.model_dump_json())
        return table

    def milliseconds(self, key: str) -> float | None:
        """What a network took that was timed before."""
        try:
            return float(str(self._networks()[key]))
        except (KeyError, ValueError):
            return None

    def keep_milliseconds(self, key: str, ms: float) -> float:
        """Keep what a network took, and return it; as for tables the first measurement is everyone's."""
        if (known := self.milliseconds(key)) is not None:
            return known
        self._write(self._networks_path, json.dumps({**self._networks(), key: ms}))
        return ms

    def _networks(self) -> dict[str, object]:
        try:
            return dict(parse_json(self._networks_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    @property
    def _networks_path(self) -> Path:
        return self.path.with_suffix("") / "networks.json"

    def _write(self, path: Path, text: str) -> None:
        """Write a file of the cache. Where that fails a CompactWarning says what follows."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text + "\n")
        except (OSError, CompactError) as error:
            warnings.warn(
                f"latency measurements cannot be kept in {self.folder} ({error}): a resumed run measures again and may choose"
                " other channels; name a table with latency.table, or set XDG_CACHE_HOME to a folder that can be written",
                CompactWarning,
                stacklevel=3,
            )

    def _table_path(self, key: str) -> Path:
        return self.path.with_suffix("") / f"{key}.json"

    def points(self, signature: str) -> list[Point]:
        """What is known of a layer."""
        return list(self._points.get(signature, ()))

    def forget(self, signatures: Iterable[str]) -> None:
        """Leave out what is known of some layers; the file has them until points are added."""
        for signature in signatures:
            self._points.pop(signature, None)

    def add(self, points: Iterable[tuple[str, Point]]) -> None:
        """Keep points by signature, the newest of each layer, and write them."""
        for signature, point in points:
            self._points[signature] = [*self._points.get(signature, ()), point][-MOST:]
        document = {
            "version": VERSION,
            "conditions": json.loads(self._conditions),
            "layers": {
                signature: [[p.outputs, p.inputs, p.ms, p.network] for p in known]
                for signature, known in sorted(self._points.items())
            },
        }
        self._write(self.path, json.dumps(document))


def _point(outputs: int, inputs: int | None, ms: float, network: float) -> Point:
    """A point of a file. Raises ValueError or TypeError where it is none that was measured."""
    point = Point(int(outputs), None if inputs is None else int(inputs), float(ms), float(network))
    if not (min(point.outputs, 1 if point.inputs is None else point.inputs) > 0 and 0 < point.ms < math.inf):
        raise ValueError(f"{point} was not measured")
    if not 0 <= point.network < math.inf:
        raise ValueError(f"{point} is of no network")
    return point
