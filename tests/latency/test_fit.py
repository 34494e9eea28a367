"""Staircases: a layer whose kernel takes channels in blocks is fitted with those blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.latency.fit import Form, LayerPoints, Point, choose_forms, fit_layer, fitted_layer
from compactmtl.sparsity.layer_latency import is_aligned


def kernel(outputs: int, inputs: int | None, step: int = 16) -> float:
    """Milliseconds of a made-up kernel: 2 µs, and blocks of channels; eight times as slow where counts are not whole blocks."""
    rows = math.ceil(outputs / step) * step
    columns = 9 if inputs is None else math.ceil(inputs / step) * step
    ragged = outputs % step != 0 or (inputs or 0) % step != 0
    return 2e-3 + (8 if ragged else 1) * rows * columns * 1e-6


def points(full: tuple[int, int | None], step: int = 16, count: int = 24, noise: float = 0.0) -> list[Point]:
    generator = np.random.default_rng(0)
    found = []
    for index in range(count):
        sizes = [None if size is None else int(generator.integers(size // 8, size + 1)) for size in full]
        if index % 2 == 0:
            sizes = [None if size is None else max(round(size / step), 1) * step for size in sizes]
        outputs, inputs = sizes
        assert outputs is not None
        factor = 1 + noise * float(generator.standard_normal())
        found.append(Point(outputs, inputs, kernel(outputs, inputs, step) * factor))
    return found


@pytest.mark.parametrize("full", [(256, 128), (128, None)])
def test_blocks_are_found_in_both_regimes(full: tuple[int, int | None]) -> None:
    layer = fit_layer(points(full), full, align=16)
    for outputs, inputs in ((64, 32), (128, 128), (33, 17), (100, 90), (16, 16)):
        read = None if full[1] is None else inputs
        expected = kernel(outputs, read)
        assert layer.at(outputs, read) == pytest.approx(expected, rel=0.1)
    assert layer.ragged.step == 16 and layer.step == 16


def test_the_multiple_that_a_kernel_is_written_for_is_found() -> None:
    """A target says 16; the runtime's kernel takes multiples of 4."""
    found = points((128, None), step=4, count=40)
    layer = fit_layer(found, (128, None), align=16)
    assert layer.align == 4
    assert layer.at(36, None) == pytest.approx(kernel(36, None, 4), rel=0.1)
    assert layer.at(37, None) == pytest.approx(kernel(37, None, 4), rel=0.1)


def blocked(outputs: int, inputs: int) -> float:
    """Milliseconds of a convolution as ONNX Runtime has it: padded to blocks of 16, three times as slow where the inputs are no
    multiple of 4, and 1 µs for another layout where the outputs are no whole blocks."""
    rows, columns = math.ceil(outputs / 16) * 16, math.ceil(inputs / 16) * 16
    return 2e-3 + rows * columns * (1e-6 if inputs % 4 == 0 else 3e-6) + (1e-3 if outputs % 16 else 0)


def test_inputs_choose_the_kernel_and_outputs_only_add_to_it() -> None:
    generator = np.random.default_rng(0)
    widths = [tuple(int(one) for one in pair) for pair in generator.integers(32, 257, (40, 2))]
    widths += [(outputs // 16 * 16, inputs // 16 * 16) for outputs, inputs in widths[:10]]
    layer = fit_layer([Point(o, i, blocked(o, i)) for o, i in widths], (256, 256), align=16)
    for outputs, inputs in ((64, 64), (65, 64), (64, 65), (65, 65), (100, 84), (240, 129)):
        assert layer.at(outputs, inputs) == pytest.approx(blocked(outputs, inputs), rel=0.02)
    assert layer.inputs_align == 4
    assert layer.step_of(outputs=True, inputs=False) == 16
    assert layer.scaled(2.0).at(65, 65) == pytest.approx(2 * layer.at(65, 65))


def test_layers_of_a_kind_share_what_none_of_them_tells_alone() -> None:
    """Six points of each are too few for its own form; together they are enough."""
    generator = np.random.default_rng(0)
    layers = []
    for index in range(8):
        widths = [tuple(int(one) for one in pair) for pair in generator.integers(32, 257, (6, 2))]
        factor = 1 + index / 2
        found = [
            Point(o, i, factor * blocked(o, i) * float(generator.uniform(0.98, 1.02))) for o, i in widths
        ]
        layers.append(LayerPoints((256, 256), 9.0 * 256 * 256, tuple(found)))
    forms = choose_forms(layers, align=16)
    assert len(set(forms.values())) == 1 and forms[layers[0]].inputs_align == 4
    errors = [
        abs(fitted_layer(layer, forms[layer]).at(o, i) / ((1 + index / 2) * blocked(o, i)) - 1)
        for index, layer in enumerate(layers)
        for o, i in ((64, 64), (100, 128), (200, 131), (250, 250))
    ]
    assert float(np.median(errors)) < 0.05


def test_weights_that_leave_a_cache_cost_more() -> None:
    """From a quarter of the layer's weights on each takes three times as long."""

    def ms(outputs: int, inputs: int) -> float:
        product = outputs * inputs
        return 1e-3 + 1e-6 * product + 2e-6 * max(product - 128 * 128, 0)

    generator = np.random.default_rng(0)
    widths = [(int(o), int(i)) for o, i in generator.integers(32, 257, (40, 2))]
    layer = fit_layer([Point(o, i, ms(o, i)) for o, i in widths], (256, 256), align=16)
    for outputs, inputs in ((64, 64), (200, 250), (256, 256)):
        assert layer.at(outputs, inputs) == pytest.approx(ms(outputs, inputs), rel=0.05)


def test_noise_of_a_few_percent_stays_of_a_few_percent() -> None:
    layer = fit_layer(points((256, 128), noise=0.05), (256, 128), align=16)
    errors = [abs(layer.at(o, i) / kernel(o, i) - 1) for o in range(32, 256, 16) for i in range(16, 128, 16)]
    assert float(np.median(errors)) < 0.05


def test_a_layer_that_is_not_there_costs_nothing() -> None:
    layer = fit_layer(points((64, 64)), (64, 64), align=16)
    assert layer.at(0, 64) == 0 and layer.at(64, 0) == 0


@pytest.mark.parametrize("count", [1, 2, 13])
@pytest.mark.parametrize("full", [(16, 3), (32, None), (5, 48)])
def test_a_layer_that_was_seen_at_one_width_alone_costs_what_it_cost_there(
    full: tuple[int, int | None], count: int
) -> None:
    """As where nothing of it can be removed: all terms are the same at every point."""
    layer = fit_layer([Point(*full, 1e-3)] * count, full, align=16)
    assert layer.at(*full) == pytest.approx(1e-3)


def test_a_layer_without_points_has_the_kernels_of_its_kind() -> None:
    """So that its weights have the price of the kernel that reads them."""
    form = Form(align=16, inputs_align=4, step=16, inputs_step=16)
    layer = fitted_layer(LayerPoints((256, 256), 9.0 * 256 * 256, ()), form)
    assert layer.at(256, 256) == layer.at(3, 3) == 0 and layer.weights == 9.0 * 256 * 256
    assert layer.is_ragged(16, 7) and not layer.is_ragged(7, 16)


def test_few_points_share_one_fit() -> None:
    found = [Point(16, 16, 0.01), Point(32, 32, 0.03), Point(20, 20, 0.02)]
    layer = fit_layer(found, (32, 32), align=16)
    assert layer.aligned == layer.ragged


@given(
    full=st.tuples(st.sampled_from([16, 48, 64]), st.sampled_from([None, 3, 32])),
    times=st.lists(st.floats(1e-4, 10), min_size=1, max_size=8),
)
def test_no_width_costs_less_than_a_narrower_one(full: tuple[int, int | None], times: list[float]) -> None:
    generator = np.random.default_rng(1)
    found = [
        Point(
            int(generator.integers(1, full[0] + 1)),
            None if full[1] is None else int(generator.integers(1, full[1] + 1)),
            ms,
        )
        for ms in times
    ]
    layer = fit_layer(found, full, align=16)
    costs = [layer.aligned.at(outputs, full[1]) for outputs in range(1, full[0] + 1)]
    assert costs == sorted(costs) and min(costs) >= 0


@pytest.mark.parametrize(
    ("count", "full", "expected"), [(32, 64, True), (33, 64, False), (3, 3, True), (None, None, True)]
)
def test_the_full_width_counts_as_whole_blocks(count: int | None, full: int | None, expected: bool) -> None:
    assert is_aligned(count, full, 16) == expected
