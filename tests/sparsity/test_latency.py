"""Tables of layer latencies: interpolation, files, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.sparsity import LatencyTable, LayerLatency


def test_between_points_it_is_linear_and_beyond_the_border_counts() -> None:
    layer = LayerLatency(outputs=(8, 16), inputs=(4, 8), ms=((1.0, 2.0), (3.0, 6.0)))
    assert layer.at(8, 4) == 1.0
    assert layer.at(12, 6) == pytest.approx((1 + 2 + 3 + 6) / 4)
    assert layer.at(1, 1) == 1.0
    assert layer.at(32, 32) == 6.0
    assert LayerLatency(outputs=(8, 16), ms=((1.0,), (3.0,))).at(10, None) == 1.5


@pytest.mark.parametrize(
    ("outputs", "inputs", "ms"),
    [
        ((16, 8), (4,), ((1.0,), (1.0,))),
        ((8, 16), (4, 8), ((1.0,), (1.0,))),
        ((8,), (4,), ((-1.0,),)),
        ((8,), (4,), ((float("nan"),),)),
    ],
)
def test_grids_that_are_none(
    outputs: tuple[int, ...], inputs: tuple[int, ...], ms: tuple[tuple[float, ...], ...]
) -> None:
    with pytest.raises(ValidationError):
        LayerLatency(outputs=outputs, inputs=inputs, ms=ms)


def test_a_table_goes_through_a_file(tmp_path: Path) -> None:
    table = LatencyTable(
        target="cpu", rest_ms=0.5, layers={"a": LayerLatency(outputs=(4,), inputs=(4,), ms=((1.5,),))}
    )
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    assert table.milliseconds({"a": (4, 4)}) == 2.0
    with pytest.raises(ConfigError, match=r"none\.json"):
        LatencyTable.load(tmp_path / "none.json")
    (tmp_path / "damaged.json").write_text('{"target": "cpu", "layers": {"a": {"outputs": [4], "ms": []}}}')
    with pytest.raises(ArtifactError, match=r"layers\.a"):
        LatencyTable.load(tmp_path / "damaged.json")


@pytest.mark.parametrize(
    ("image", "tasks", "message"),
    [((3, 64, 64), ("age",), "images of"), ((3, 32, 32), ("age", "sex"), "with the tasks age")],
)
def test_a_table_of_another_size_or_of_other_tasks_is_refused(
    image: tuple[int, ...], tasks: tuple[str, ...], message: str
) -> None:
    layer = LayerLatency(outputs=(1, 8), inputs=(1, 3), ms=((0.1, 0.2), (0.3, 0.4)))
    new = LatencyTable(version=2, target="x", image=(3, 32, 32), tasks=("age",), layers={"stem": layer})
    new.check({"stem": (8, 3)}, (3, 32, 32), ("age",))
    with pytest.raises(ConfigError, match=message):
        new.check({"stem": (8, 3)}, image, tasks)
    old = LatencyTable(
        target="x", layers={"stem": layer}
    )  # names neither: layers and widths alone are compared
    old.check({"stem": (8, 3)}, image, tasks)
    with pytest.raises(ValueError, match="names its image and tasks"):
        LatencyTable(version=2, target="x", layers={"stem": layer})
