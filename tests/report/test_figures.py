"""Figures: valid, deterministic, self-contained SVG."""

from __future__ import annotations

import re
from functools import cache
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from compactmtl.report import figures
from compactmtl.report.model import MetricView, TaskView
from compactmtl.report.read import Change, Competition, Epoch, LayerChange, Sparsity, TrainLosses
from tests.support.synthetic_runs import verification

TASK = TaskView(
    name="depth",
    kind="depth",
    primary="abs_err",
    metrics={"abs_err": MetricView(higher_is_better=False, unit="m")},
)


def layers(name: str = "encoder.conv1") -> list[LayerChange]:
    return [
        LayerChange(name=name, type="Conv2d", before=(64, 3), after=(40, 3), macs=Change(before=9, after=5)),
        LayerChange(
            name="fc", type="Linear", before=(10, 64), after=(10, 40), macs=Change(before=9, after=5)
        ),
    ]


def epochs(sparse: bool = False) -> list[Epoch]:
    return [
        Epoch(
            epoch=number,
            step=number,
            seconds=1.0,
            lr=1e-3,
            train=TrainLosses(loss=1.0),
            val={"depth": {"abs_err": 1 / number}},
            sparsity=Sparsity(groups_zero=0.1 * number) if sparse else None,
        )
        for number in range(1, 4)
    ]


COMPETITION = Competition(
    cosines={"conv1": {"age|gender": 0.5}, "conv2": {"age|gender": -0.25}},
    spread={"conv1": {"age": 0.1, "gender": 0.2, "between": 0.1}, "conv2": {"age": 0.3, "gender": 0.1}},
)


def competing() -> list[Epoch]:
    return [epoch.model_copy(update={"competition": COMPETITION}) for epoch in epochs()]


@cache
def every_figure(key: str) -> list[str]:
    sparsity = figures.sparsity_curve({"run": epochs(sparse=True)}, key)
    drawn = (
        figures.cosine_curves(competing(), key),
        figures.cosines_by_layer(COMPETITION, key),
        figures.spread_by_layer(COMPETITION, key),
    )
    competition = [one for one in drawn if one is not None]
    assert sparsity is not None
    assert len(competition) == 3
    return [
        figures.layer_channels(layers(), key),
        figures.latency_distributions(verification().latency, key),
        figures.learning_curves({"run": epochs()}, TASK, "abs_err", key, {"run": 2}),
        sparsity,
        *competition,
    ]


def test_figures_are_well_formed_and_the_same_every_time() -> None:
    first = every_figure("a")
    for svg in first:
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    every_figure.cache_clear()
    assert every_figure("a") == first


def test_figures_hold_no_address_and_no_date() -> None:
    for svg in every_figure("a"):
        addresses = set(re.findall(r"https?://[^\"'\s]+", svg))
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # namespaces
        assert "<metadata" not in svg


def test_two_figures_on_a_page_share_no_id_and_each_reference_is_met() -> None:
    one, other = every_figure("a")[0], figures.layer_channels(layers(), "b")
    ids = [set(re.findall(r'\sid="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, known in zip((one, other), ids, strict=True):
        used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
        assert used and used <= known


def test_ink_is_the_page_s() -> None:
    for svg in every_figure("a"):
        assert "currentColor" in svg
        assert figures.INK not in svg


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a$b_c$d", "a & b"])
def test_a_layer_s_name_is_text_and_nothing_else(name: str) -> None:
    svg = figures.layer_channels(layers(name), "a")
    texts = [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert name in texts
    assert "<script" not in svg


def test_a_run_without_sparsity_has_no_sparsity_figure() -> None:
    assert figures.sparsity_curve({"run": epochs()}, "a") is None


def test_drawing_leaves_matplotlib_s_settings_alone() -> None:
    every_figure.cache_clear()
    before = dict(mpl.rcParams)
    every_figure("a")
    assert dict(mpl.rcParams) == before


def test_competition_is_drawn_where_it_was_measured() -> None:
    assert figures.cosine_curves(epochs(), "none") is None
    assert figures.cosines_by_layer(Competition(), "none") is None
    assert figures.spread_by_layer(Competition(), "none") is None
    svg = figures.cosine_curves(competing(), "some")
    assert svg is not None and "age and gender" in svg
    assert COMPETITION.mean_cosine("age|gender") == 0.125
