"""The pattern of zeros and the path of λ."""

from __future__ import annotations

from xml.etree import ElementTree

from compactmtl.report.read import Epoch, Sparsity, TrainLosses
from compactmtl.report.sparsity_figures import strength_path, zero_pattern


def epochs(strength: float | None = 1e-4) -> list[Epoch]:
    return [
        Epoch(
            epoch=number,
            step=number,
            seconds=1.0,
            lr=1e-3,
            train=TrainLosses(loss=1.0),
            sparsity=Sparsity(
                groups_zero=0.1 * number,
                strength=None if strength is None else strength * (number < 3),
                layers={"stem": 0.0, "encoder.layer1": 0.25 * number},
            ),
        )
        for number in range(1, 4)
    ]


def texts(svg: str) -> list[str | None]:
    return [one.text for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_row_a_layer_with_its_last_share() -> None:
    svg = zero_pattern(epochs(), "a")
    assert svg is not None
    assert {"stem", "encoder.layer1", "0 %", "75 %"} <= set(texts(svg))
    assert svg == zero_pattern(epochs(), "a")


def test_the_path_of_a_strength() -> None:
    svg = strength_path(epochs(), "a")
    assert svg is not None and "λ" in texts(svg)


def test_nothing_to_draw() -> None:
    assert strength_path(epochs(None), "a") is None
    assert strength_path(epochs(0.0), "a") is None
    plain = [one.model_copy(update={"sparsity": None}) for one in epochs()]
    assert zero_pattern(plain, "a") is None
    old = [one.model_copy(update={"sparsity": Sparsity(groups_zero=0.1)}) for one in epochs()]
    assert zero_pattern(old, "a") is None  # a log of before layers were written
