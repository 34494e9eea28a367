"""The gap between the ratio of MACs and that of time: its parts add up, and each finds the layers that it is about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.backends.base import LayerTime
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.verify.explain import doubt, explain, in_words
from compactmtl.verify.latency import latency_result
from compactmtl.verify.result import Explanation, GraphWork, LatencyStats, LayerWork, Measured, Part

Layer = tuple[int, int, float]  # outputs, inputs, milliseconds


def stats(name: str, ms: float, process: float | None = None) -> LatencyStats:
    return LatencyStats(
        name=name,
        batch=1,
        samples_ms=(ms,) * 5,
        min_ms=ms,
        median_ms=ms,
        p90_ms=ms,
        p99_ms=ms,
        variation=0.0,
        backend="b",
        version="1",
        provider="p",
        device="d",
        precision="fp32",
        threads=1,
        includes_transfers=True,
        process_ms=process,
        process_low_ms=process,
        process_variation=None if process is None else 0.0,
    )


def model(layers: dict[str, Layer], other: dict[str, float] | None = None, call: float = 0.0) -> Measured:
    """A network of 1×1 layers on 100 pixels; `other` are steps of a kind after the last layer."""
    works, times, places = [], [], []
    for name, (outputs, inputs, ms) in layers.items():
        works.append(
            LayerWork(
                name=name,
                operator="Conv",
                macs=100 * outputs * inputs,
                outputs=outputs,
                inputs=inputs,
                elements=100 * (outputs + inputs) + outputs * inputs,
            )
        )
        times.append(LayerTime(name=name, operator="Conv", milliseconds=ms))
        places.append(("kernel", name))
    for kind, ms in (other or {}).items():
        times.append(LayerTime(name=kind, operator=kind.title(), milliseconds=ms))
        places.append((kind, list(layers)[-1]))
    work = GraphWork(layers=tuple(works), places=tuple(places), channel_step=16)
    return Measured(megabytes=1.0, throughput={}, layers=tuple(times), work=work, call_ms=call)


def total(one: Measured) -> float:
    return sum(step.milliseconds for step in one.layers or ()) + (one.call_ms or 0.0)


def explained(dense: Measured, small: Measured, rest: float = 0.0) -> Explanation:
    result = latency_result(
        {"dense": stats("dense", total(dense)), "small": stats("small", total(small) + rest)},
        "dense",
        warmup=0,
        settle=0,
        load_average=None,
    )
    return explain(result, {"dense": dense, "small": small}, "small", "dense")


def part(found: Explanation, key: str) -> Part:
    return next(one for one in found.parts if one.key == key)


times = st.floats(1e-3, 10)
widths = st.integers(1, 64)


@given(
    layers=st.lists(st.tuples(widths, widths, times, widths, widths, times), min_size=1, max_size=6),
    other=st.tuples(times, times),
    wall=st.tuples(times, times),
)
def test_the_parts_and_the_remainder_are_the_gap(
    layers: list[tuple[int, int, float, int, int, float]],
    other: tuple[float, float],
    wall: tuple[float, float],
) -> None:
    """Whatever the profiles say, also where they are longer or shorter than the model."""
    dense = model({str(i): one[:3] for i, one in enumerate(layers)}, {"resize": other[0]}, call=0.01)
    small = model({str(i): one[3:] for i, one in enumerate(layers)}, {"layout": other[1]}, call=0.02)
    result = latency_result(
        {"dense": stats("dense", wall[0]), "small": stats("small", wall[1])},
        "dense",
        warmup=0,
        settle=0,
        load_average=None,
    )
    found = explain(result, {"dense": dense, "small": small}, "small", "dense")
    found_sum = sum(one.milliseconds for one in found.parts) + found.remainder
    assert found_sum == pytest.approx(found.gap, abs=1e-9 * (1 + wall[0] + wall[1]) * 100)
    assert found.gap == pytest.approx(wall[1] - found.macs / found.macs_against * wall[0])
    for one in found.parts:
        assert one.milliseconds == pytest.approx(sum(one.layers.values()), abs=1e-9) or one.key == "call"


def test_time_that_falls_as_macs_leaves_no_gap() -> None:
    dense = model({"a": (64, 64, 4.0), "b": (64, 64, 4.0)})
    found = explained(dense, model({"a": (32, 64, 2.0), "b": (64, 32, 2.0)}))
    assert found.gap == pytest.approx(0)
    assert sum(abs(one.milliseconds) for one in found.parts) == pytest.approx(0)


def test_a_layer_that_was_not_touched_keeps_its_time() -> None:
    """Half of the MACs of the other layer are gone: a third of all."""
    dense = model({"stem": (32, 64, 2.0), "body": (64, 64, 4.0)})
    found = explained(dense, model({"stem": (32, 64, 2.0), "body": (32, 64, 2.0)}))
    assert part(found, "untouched").layers == {"stem": pytest.approx(2 / 3)}
    assert part(found, "uneven").layers == {"body": pytest.approx(-2 / 3)}
    assert found.gap == pytest.approx(0)


def test_a_width_that_kernels_round_up_is_found() -> None:
    """33 channels take what 48 take."""
    found = explained(
        model({"a": (64, 64, 6.4), "b": (64, 64, 6.4)}), model({"a": (33, 64, 4.8), "b": (64, 33, 4.8)})
    )
    rounding = part(found, "rounding")
    assert rounding.milliseconds == pytest.approx(2 * 6.4 * (48 - 33) / 64)
    assert set(rounding.layers) == {"a", "b"} and "multiples" in rounding.advice
    assert found.gap == pytest.approx(rounding.milliseconds)


def test_layers_at_the_floor_are_found() -> None:
    """Each kernel costs 0.5 ms, and 1 ms per 4096 pairs of channels."""
    dense = model({"a": (64, 64, 1.5), "b": (64, 64, 1.5), "tiny": (16, 0, 0.5)})
    small = model({"a": (16, 64, 0.75), "b": (64, 16, 0.75), "tiny": (16, 0, 0.5)})
    found = explained(dense, small)
    assert part(found, "floor").layers == {"a": pytest.approx(0.375), "b": pytest.approx(0.375)}


def test_a_call_that_is_longer_than_the_model_leaves_time_to_its_layers() -> None:
    """As of a network that is little but a call, where two clockings differ."""
    dense, small = model({"a": (64, 64, 0.02)}, call=0.1), model({"a": (32, 64, 0.01)}, call=0.1)
    found = explained(dense, small, rest=-0.05)
    assert part(found, "call").milliseconds > 0 and part(found, "uneven").layers.keys() == {"a"}
    assert found.remainder == pytest.approx(0)


def test_a_layer_that_waits_for_memory_is_found() -> None:
    """Its products are few for its bytes: the time falls as the bytes do."""
    same: dict[str, Layer] = {"wide": (512, 512, 1.0), "tiny": (4, 1, 1e-3)}
    small, whole = (100 * (width + 32) + width * 32 for width in (32, 64))
    dense = model({**same, "thin": (64, 32, 0.05)})
    found = explained(dense, model({**same, "thin": (32, 32, 0.05 * small / whole)}))
    assert part(found, "floor").layers == {"thin": pytest.approx(0.5e-3)}
    assert part(found, "memory").layers == {"thin": pytest.approx(0.05 * (small / whole - 0.5) - 0.5e-3)}


@pytest.mark.parametrize("kind", ["layout", "precision", "resize", "work", "before", "after"])
def test_what_runs_beside_the_layers_is_a_part_with_its_place(kind: str) -> None:
    dense, small = model({"a": (64, 64, 4.0)}), model({"a": (32, 64, 2.0)}, {kind: 0.5})
    found = explained(dense, small)
    assert part(found, kind).layers == {f"{kind.title()} after a": pytest.approx(0.5)}
    assert part(found, kind).advice and found.gap == pytest.approx(0.5)


def test_the_call_does_not_fall_with_macs() -> None:
    found = explained(model({"a": (64, 64, 4.0)}, call=0.2), model({"a": (32, 64, 2.0)}, call=0.2))
    assert part(found, "call").milliseconds == pytest.approx(0.1)


def test_layers_are_paired_in_order_where_no_name_is_the_same() -> None:
    found = explained(model({"conv_1": (64, 64, 4.0)}), model({"/a/Conv": (32, 64, 3.0)}))
    assert part(found, "kernels").layers.keys() | part(found, "floor").layers.keys() == {"conv_1"}


def test_a_layer_that_only_one_model_has_is_said() -> None:
    dense = model({"a": (64, 64, 4.0), "gone": (64, 64, 4.0)})
    found = explained(dense, model({"a": (64, 64, 4.0), "new": (64, 32, 1.0)}))
    assert part(found, "added").layers == {"new": pytest.approx(1.0)}
    assert "gone" in part(found, "uneven").layers


def test_a_remainder_above_a_tenth_of_the_gap_is_said() -> None:
    dense, small = model({"a": (64, 64, 4.0)}), model({"a": (32, 64, 3.0)})
    assert doubt(explained(dense, small)) == ""
    found = explained(dense, small, rest=0.5)
    assert found.remainder == pytest.approx(0.5) and "idle cores" in doubt(found)


def test_a_busy_machine_is_told_and_processor_time_taken() -> None:
    """Other programs stretch the wall's clock threefold; the one thread works as long as it did."""
    dense, small = model({"a": (64, 64, 4.0)}), model({"a": (32, 64, 3.0)})
    both = {"dense": stats("dense", 12.0, 4.0), "small": stats("small", 9.0, 3.0)}
    result = latency_result(both, "dense", warmup=0, settle=0, load_average=None)
    found = explain(result, {"dense": dense, "small": small}, "small", "dense")
    assert found.clock == "processor" and found.gap == pytest.approx(1.0)
    assert "busy" in in_words(found)


def test_faster_than_its_macs_is_said_as_such() -> None:
    found = explained(model({"a": (64, 64, 4.0)}), model({"a": (32, 64, 1.0)}))
    assert "faster than its MACs by 1 ms" in in_words(found)


def test_what_is_missing_is_named() -> None:
    dense = model({"a": (64, 64, 4.0)})
    bare = Measured(megabytes=1.0, throughput={}, not_run={"layers": "not asked for"})
    result = latency_result(
        {"dense": stats("dense", 4.0), "small": stats("small", 2.0)},
        "dense",
        warmup=0,
        settle=0,
        load_average=None,
    )
    with pytest.raises(ArtifactError, match="the layers of small: not asked for"):
        explain(result, {"dense": dense, "small": bare}, "small", "dense")
    empty = dense.model_copy(update={"work": GraphWork(layers=(), places=(("work", ""),), channel_step=16)})
    with pytest.raises(ConfigError, match="no convolution"):
        explain(result, {"dense": dense, "small": empty}, "small", "dense")
