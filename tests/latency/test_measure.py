"""A table of a small network, on a made-up runtime whose kernels take channels in blocks."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.backends import load_target
from compactmtl.backends.base import Availability
from compactmtl.backends.onnxruntime.entry import OnnxRuntimeBackend
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, ConfigError, MachineError, MissingDependencyError
from compactmtl.latency import Settings, Store, check_target, fit_layer, latency_table, require
from compactmtl.latency import measure as module
from compactmtl.latency.cuts import Cutter
from compactmtl.latency.measure import agreeing, conditions_of
from compactmtl.latency.observe import Observed, widths_of
from compactmtl.sparsity.latency import VERSION, LatencyTable
from compactmtl.sparsity.layer_latency import Regime, StaircaseLatency
from compactmtl.surgery import compact

TARGET = load_target("onnxruntime-cpu")
QUICK = Settings(cuts=8, points=6)
REST = 5e-3
INPUT = (torch.zeros(1, 3, 8, 8),)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 48, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 5),
    ).eval()


def kernel(outputs: int, inputs: int | None) -> float:
    return 1e-3 + math.ceil(outputs / 16) * math.ceil((inputs or 1) / 16) * 4e-3


def runtime(variation: float = 0.0, calls: list[int] | None = None) -> Callable[..., Observed]:
    """What `observe` would find on a machine where a layer takes what `kernel` says, and the network 5 µs more."""

    def fake(model: nn.Module, inputs: Any, full: Mapping[str, Any], target: Target, path: Path) -> Observed:
        widths = widths_of(model, full)
        layers = {name: kernel(*width) for name, width in widths.items() if width[0]}
        if calls is not None:
            calls.append(1)
        return Observed(widths, layers, REST, sum(layers.values()) + REST, variation)

    return fake


def measured(monkeypatch: pytest.MonkeyPatch, store: Store, **options: Any) -> LatencyTable:
    monkeypatch.setattr(module, "observe", runtime(**options))
    return latency_table(network(), INPUT, TARGET, "onnxruntime-cpu", store=store, settings=QUICK)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(conditions_of(TARGET, 1), tmp_path)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LatencyTable]:
    with pytest.MonkeyPatch.context() as patch:
        yield measured(patch, Store(conditions_of(TARGET, 1), tmp_path_factory.mktemp("store")))


def test_a_table_foresees_networks_that_it_was_not_measured_on(table: LatencyTable) -> None:
    for first, second in ((64, 48), (32, 16), (16, 48), (48, 32)):
        widths = {"0": (first, 3), "2": (second, first), "6": (5, second)}
        expected = sum(kernel(*width) for width in widths.values()) + REST
        assert table.milliseconds(widths) == pytest.approx(expected, rel=0.05)
    assert table.error is not None and table.error < 0.05
    assert (table.version, table.precision, table.batch, table.image) == (5, "fp32", 1, (3, 8, 8))


def test_a_known_network_is_read_from_the_cache_and_a_kindred_one_is_timed_once(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    first = measured(monkeypatch, store)
    calls: list[int] = []
    assert measured(monkeypatch, store, calls=calls) == first and not calls
    monkeypatch.setattr(module, "observe", runtime(calls=calls))
    kindred = nn.Sequential(
        *network()[:4], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5), nn.Softmax(1)
    )
    latency_table(kindred.eval(), INPUT, TARGET, "onnxruntime-cpu", store=store, settings=QUICK)
    assert len(calls) == 1


def test_a_busy_machine_is_said_and_what_was_timed_meanwhile_makes_no_table(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    with pytest.raises(MachineError, match="of 9 of 9 networks"):
        measured(monkeypatch, store, variation=0.9)
    assert not store.path.exists()
    calls: list[int] = []
    measured(monkeypatch, store, calls=calls)
    assert len(calls) == 9  # the whole network and all cuts


def test_what_was_timed_between_is_kept(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """The machine is idle for the whole network and two cuts."""
    calls: list[int] = []
    quiet, busy = runtime(calls=calls), runtime(0.9, calls)
    monkeypatch.setattr(module, "observe", lambda *words: (quiet if len(calls) < 3 else busy)(*words))
    with pytest.raises(MachineError, match="of 6 of 9 networks"):
        latency_table(network(), INPUT, TARGET, "onnxruntime-cpu", store=store, settings=QUICK)
    points = Store(store.conditions, store.folder)._points
    assert {len(own) for own in points.values()} == {3}


def test_the_full_width_of_layers_in_many_networks_stands_for_no_other(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """As where several commands were interrupted after the whole network."""
    calls: list[int] = []
    monkeypatch.setattr(module, "observe", runtime(calls=calls))
    monkeypatch.setattr(module._Bench, "cuts", lambda *words: [])
    for _ in range(2 * QUICK.points):
        latency_table(network(), INPUT, TARGET, "onnxruntime-cpu", store=store, settings=QUICK)
        shutil.rmtree(store.path.with_suffix(""))
    assert {len(own) for own in store._points.values()} == {1}


def test_the_first_table_is_everyone_s(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Of two trainings that begin at once, both are resumed with the table that they began with."""
    first = measured(monkeypatch, store)
    assert store.keep_table("one", first) == first
    assert store.keep_table("one", first.scaled(2)) == first
    assert (store.keep_milliseconds("net", 1.0), store.keep_milliseconds("net", 2.0)) == (1.0, 1.0)


def test_what_was_measured_on_a_busy_machine_is_measured_again_on_request(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """Other work came and went: the runs of one network agree, and those of another are many times as long."""
    slower = iter((5, 1, 9, 2, 14, 4, 1, 7, 3))
    real = runtime()

    def disturbed(*words: Any) -> Observed:
        found, factor = real(*words), next(slower)
        layers = {name: factor * ms for name, ms in found.layers.items()}
        return dataclasses.replace(found, layers=layers, wall=factor * found.wall)

    monkeypatch.setattr(module, "observe", disturbed)
    bad = latency_table(network(), INPUT, TARGET, "onnxruntime-cpu", store=store, settings=QUICK)
    assert bad.unreliable and measured(monkeypatch, store) == bad
    monkeypatch.setattr(module, "observe", real)
    fresh = latency_table(
        network(), INPUT, TARGET, "onnxruntime-cpu", store=store, settings=QUICK, again=True
    )
    assert not fresh.unreliable and fresh.error is not None and fresh.error < 0.05
    assert {len(own) for own in Store(store.conditions, store.folder)._points.values()} == {9}
    assert measured(monkeypatch, Store(store.conditions, store.folder)) == fresh  # from the cache


def test_a_network_without_layers_has_no_table(store: Store) -> None:
    with pytest.raises(ConfigError, match="no convolution or linear layer"):
        latency_table(nn.ReLU(), INPUT, TARGET, "onnxruntime-cpu", store=store)


def test_cuts_are_spread_over_the_widths_and_every_second_is_aligned() -> None:
    cutter = Cutter(network(), INPUT, align=16)
    plans = cutter.plan(6)
    assert sorted(cutter.sizes) == [48, 64]
    assert all(count % 16 == 0 or count in cutter.sizes for counts in plans[::2] for count in counts)
    assert len({tuple(counts) for counts in plans}) == 6
    cut = cutter.cut(plans[1])
    assert isinstance(cut, nn.Sequential)
    assert cut[0].out_channels == plans[1][cutter.sizes.index(64)]
    assert cutter.plan(6) == plans


def test_some_cuts_keep_one_share_everywhere_and_the_shares_of_all_are_as_ever() -> None:
    cutter = Cutter(network(), INPUT, align=1)
    alike, free = cutter.plan(12, alike=4), cutter.plan(12)
    for counts in alike[:4]:
        shares = [count / size for count, size in zip(counts, cutter.sizes, strict=True)]
        assert max(shares) - min(shares) <= 1 / min(cutter.sizes)
    least, most = (sum(counts) / sum(cutter.sizes) for counts in (alike[0], alike[3]))
    assert least < 0.2 and most > 0.9
    assert [sorted(own) for own in zip(*alike, strict=True)] == [
        sorted(own) for own in zip(*free, strict=True)
    ]


@pytest.mark.slow
def test_a_cache_of_an_older_version_is_measured_anew(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    measured(monkeypatch, store)
    shutil.rmtree(store.path.with_suffix(""))
    text = store.path.read_text()
    assert '"version": 3' in text
    store.path.write_text(text.replace('"version": 3', '"version": 2'))
    calls: list[int] = []
    measured(monkeypatch, Store(store.conditions, store.folder), calls=calls)
    assert len(calls) == 9


def test_a_layer_that_the_runtime_names_otherwise_costs_nothing_of_its_own() -> None:
    """Its time is the layer's before it; no more is measured for it."""
    assert fit_layer([], (10, 64), align=16).at(10, 64) == 0


def test_a_table_of_other_conditions_is_refused(table: LatencyTable) -> None:
    check_target(table, "onnxruntime-cpu", TARGET)
    for change in (
        {"precision": "int8"},
        {"device": "another machine"},
        {"runtime": "0.0.1"},
        {"threads": 4},
        {"batch": 8},
        {"backend": "openvino"},
    ):
        (key,) = change
        with pytest.raises(ConfigError, match=f"the latency table is of {key}"):
            check_target(table.model_copy(update=change), "onnxruntime-cpu", TARGET)


def test_a_target_that_cannot_run_here_says_how_its_table_is_had(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Availability(False, "no such device", "plug it in")
    monkeypatch.setattr(OnnxRuntimeBackend, "availability", lambda *words: gone)
    with pytest.raises(MissingDependencyError, match="budget is for far, which can't run here") as found:
        require(TARGET, "far")
    assert "latency.table" in found.value.hint and found.value.exit_code == 3


def test_a_runtime_that_names_no_layer_makes_no_table(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr(
        module,
        "observe",
        lambda model, inputs, full, target, path: Observed(
            widths_of(model, full), dict.fromkeys(full, 0.0), 1.0, 1.0, 0.0
        ),
    )
    with pytest.raises(ArtifactError, match="names none of the network's layers"):
        latency_table(network(), INPUT, TARGET, "onnxruntime-cpu", store=store, settings=QUICK)


def test_a_table_survives_its_file(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def test_a_table_predicts_its_network_and_cuts_of_it(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    table = measured(monkeypatch, store)
    model = network()
    full = {name: layer.full for name, layer in table.layers.items()}
    assert table.predict(model, INPUT) == pytest.approx(table.milliseconds(full))
    first = next(name for name, one in model.named_modules() if isinstance(one, nn.Conv2d))
    with torch.no_grad():
        layer = model.get_submodule(first)
        for value in layer.parameters():
            value[len(value) // 2 :] = 0
    small = compact(model, INPUT).model
    assert table.predict(small, INPUT) < 0.95 * table.predict(model, INPUT)
    wider = nn.Sequential(*[nn.Conv2d(3, 4096, 3)]).eval()
    with pytest.raises(ConfigError, match="up to"):
        table.predict(wider, INPUT)
    with pytest.raises(ConfigError, match="no layer"):
        table.predict(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(3, 4, 3))).eval(), INPUT)
    with pytest.raises(ConfigError, match="batch of 1"):
        table.predict(model, torch.zeros(4, 3, 8, 8))
    with pytest.raises(ConfigError, match="images of"):
        table.predict(model, torch.zeros(1, 3, 96, 96))


def test_a_target_is_named_and_inputs_are_as_people_have_them(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr(module, "observe", runtime())
    (image,) = INPUT
    model = network().train()
    named = module.latency_table(model, image, target="onnxruntime-cpu", store=store, settings=QUICK)
    assert (named.target, named.backend) == ("onnxruntime-cpu", "onnxruntime")
    assert model.training
    with pytest.raises(ConfigError, match="onnxruntime-cup"):
        module.latency_table(model, image, target="onnxruntime-cup")


@pytest.mark.slow
def test_a_real_runtime_is_timed(tmp_path: Path) -> None:
    """Only that it works and is of a sensible size: this machine may be busy."""
    store = Store(conditions_of(TARGET, 1), tmp_path)
    try:
        table = latency_table(
            network(), INPUT, TARGET, "onnxruntime-cpu", store=store, settings=Settings(cuts=4, points=3)
        )
    except MachineError:
        assert store.path.exists()
        return
    whole = table.milliseconds({name: layer.full for name, layer in table.layers.items()})
    assert 0 < whole < 100 and np.isfinite(whole)


def test_what_a_runtime_does_between_its_steps_is_in_the_table() -> None:
    """Networks take a tenth longer than their layers, and 50 µs."""
    each = Regime(step=1, outputs=1e-3)
    layer = StaircaseLatency(full=(64, 3), align=1, aligned=each, ragged=each)
    table = LatencyTable(version=VERSION, target="mine", image=(3, 8, 8), tasks=(), layers={"a": layer})
    observed = [
        Observed({"a": (width, 3)}, {"a": width * 1e-3}, 0.0, 0.05 + 1.1e-3 * width, 0.01)
        for width in (8, 16, 24, 40, 64)
    ]
    found = agreeing(table, observed)
    assert found.milliseconds({"a": (32, 3)}) == pytest.approx(0.05 + 1.1e-3 * 32)
    assert found.rest_ms == pytest.approx(0.05)
    assert agreeing(table, observed[1:]) == table  # too few to tell
    busy = dataclasses.replace(observed[0], wall=9.0, variation=1.0)
    assert agreeing(table, [*observed, busy]) == found
