"""Why a network with fewer MACs is not as much faster: the gap between both ratios in milliseconds, part by part.

A model that takes `T` ms for `M` MACs would, with `m` MACs, take `m / M · T` if time fell as MACs. What the smaller model
takes beyond that is the gap. It is split by what each step of both runtimes' profiles takes beyond its share `m / M`, so that
the parts with the remainder, the time in no step, add up to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.verify.latency import undisturbed
from compactmtl.verify.result import Explanation, GraphWork, LatencyResult, LayerWork, Measured, Part

UNSURE = 0.1  # share of the gap that may be in no part; above it the machine was not idle
SAME = 1e-9  # of a layer's share of MACs, below which it is as it was
PEAK = 95  # percentile of layers whose speed stands for the machine's: one timing may be off

# key -> what, and what would help
_WORDS: Mapping[str, tuple[str, str]] = {
    "untouched": (
        "layers that were not touched, such as stem, heads and projections",
        "let them lose channels too (sparsity.scope: model), make them narrower in the recipe, or read the image at a"
        " smaller size",
    ),
    "uneven": (
        "layers that lost a smaller share than the whole network (below 0: a larger one)",
        "choose by time and not by MACs: a latency budget in the recipe",
    ),
    "rounding": (
        "widths that the kernels round up to their step",
        "keep channel counts at multiples of the step: surgery.align: auto, or a latency budget",
    ),
    "floor": (
        "layers at the floor that any kernel costs",
        "remove whole layers or blocks, or use a shallower encoder: fewer channels do not help here",
    ),
    "memory": (
        "layers that wait for memory and not for products",
        "a smaller resolution, an earlier stride or int8: bytes count here, not MACs",
    ),
    "kernels": (
        "kernels that are slower for each MAC at these widths (below 0: faster)",
        "`compactmtl latency` shows where the time goes; a latency budget steers by it",
    ),
    "work": (
        "sums, activations, pooling and other steps without MACs",
        "their time falls with channels and pixels: a smaller resolution, or activations that the runtime fuses",
    ),
    "resize": (
        "resizing of maps",
        "deploy smaller outputs, or resize after argmax: it costs the same whatever was removed before it",
    ),
    "layout": (
        "changes of layout that the runtime added",
        "keep channel counts at multiples of the kernels' block, so that no step changes the layout between two layers",
    ),
    "precision": (
        "Q/DQ pairs and casts that the runtime did not fuse",
        "quantize these layers' neighbors too, or leave the layers in float: int8.exclude",
    ),
    "before": ("steps before the first layer", "do them on the device that delivers the image"),
    "after": ("steps after the last layer", "leave onnx.postprocess out, or do it where the result is used"),
    "call": (
        "the call itself: inputs and outputs, and starting the runtime",
        "a larger batch, or smaller outputs: it does not depend on what is computed",
    ),
    "added": ("layers that only this model has", "check that both models are of one network"),
}


@dataclass(frozen=True)
class _Timed:
    """One model: milliseconds by layer (its kernels) and of other steps by kind and place; what is in no step."""

    work: GraphWork
    layers: dict[str, LayerWork]
    macs: int
    wall: float
    kernels: dict[str, float]
    others: dict[str, dict[str, float]]  # kind -> operator and layer before it -> ms
    call: float
    remainder: float
    overhead: float  # taken off each step


def explain(latency: LatencyResult, measured: Mapping[str, Measured], name: str, against: str) -> Explanation:
    """Why `name` is not as much faster than `against` as it has fewer MACs, from what was measured of both.

    Raises KeyError for a name without a latency, ArtifactError where the profile of a model's layers is missing.
    """
    stats = [latency.stats[one] for one in (name, against)]
    walls = [ms for ms, _ in undisturbed(*stats)]
    mine, theirs = (
        _timed(one, wall, measured.get(one)) for one, wall in zip((name, against), walls, strict=True)
    )
    ratio = mine.macs / theirs.macs
    parts = _Parts(ratio, mine.work)
    pairs = _pairs(mine, theirs)
    floor = min((ms for one in (mine, theirs) for ms in one.kernels.values() if ms > 0), default=0.0)
    peaks = _peaks(mine, theirs)
    for layer in theirs.kernels:
        own = pairs.get(layer)
        if own is None:  # it is gone: nothing of it is left to pay for
            parts.add("uneven", layer, -ratio * theirs.kernels[layer])
            continue
        small, large = mine.layers[own], theirs.layers[layer]
        parts.layer(layer, small, large, mine.kernels[own], theirs.kernels[layer], floor, peaks)
    known = set(pairs.values())
    for layer, ms in mine.kernels.items():
        if layer not in known:
            parts.add("added", layer, ms)
    for kind in dict.fromkeys((*theirs.others, *mine.others)):
        before, after = theirs.others.get(kind, {}), mine.others.get(kind, {})
        for step in dict.fromkeys((*before, *after)):
            parts.add(kind, step, after.get(step, 0.0) - ratio * before.get(step, 0.0))
    parts.add("call", "", mine.call - ratio * theirs.call)
    by_macs = ratio * theirs.wall
    return Explanation(
        name=name,
        against=against,
        macs=mine.macs,
        macs_against=theirs.macs,
        milliseconds=mine.wall,
        milliseconds_against=theirs.wall,
        by_macs=by_macs,
        gap=mine.wall - by_macs,
        parts=parts.sorted(),
        remainder=mine.remainder - ratio * theirs.remainder,
        clock="processor" if walls != [one.median_ms for one in stats] else "wall",
        profiler_us=(1e3 * mine.overhead, 1e3 * theirs.overhead),
    )


def in_words(found: Explanation) -> str:
    """The gap in a sentence."""
    ratios = (
        f"{found.macs_against / found.macs:.2f}× fewer MACs"
        if found.macs < found.macs_against
        else "no fewer MACs"
    )
    times = f"{found.milliseconds_against:.3g} ms becomes {found.milliseconds:.3g} ms"
    by_macs = f"{found.by_macs:.3g} ms by the MACs alone"
    if found.clock == "processor":
        times += " of processor time (the machine is busy)"
    kind = "a gap of" if found.gap >= 0 else "faster than its MACs by"
    return (
        f"{found.name} has {ratios} than {found.against}; {times}, {by_macs}: {kind} {abs(found.gap):.3g} ms"
    )


def doubt(found: Explanation) -> str:
    """What a reader has to know of the sum of the parts; empty where they explain the gap."""
    if abs(found.remainder) <= UNSURE * abs(found.gap):
        return ""
    return (
        f"{abs(found.remainder):.3g} ms lie in no step, more than {UNSURE:.0%} of the gap: the profile of the layers and the"
        " latency were taken at different speeds of the machine. Measure again on idle cores"
    )


def _timed(name: str, wall: float, measured: Measured | None) -> _Timed:
    if measured is None or not measured.layers or measured.work is None:
        reasons = {} if measured is None else measured.not_run
        why = next((reasons[key] for key in ("layers", "work") if key in reasons), "they were not timed")
        raise ArtifactError(
            f"nothing is known of the layers of {name}: {why}",
            "profile an ONNX file on a target that times layers",
        )
    work, times = measured.work, measured.layers
    macs = sum(layer.macs for layer in work.layers)
    if not macs:
        raise ConfigError(
            f"{name} has no convolution and no linear layer", "there are no MACs to compare time with"
        )
    # A profiler takes time of its own at every step; what the steps are longer than the model without it is that.
    # Where the call and the steps are longer than the model together, both give way.
    total = sum(step.milliseconds for step in times)
    call = measured.call_ms or 0.0
    call *= min(1.0, wall / (call + total)) if call else 0.0
    inside = wall - call
    overhead = max(total - inside, 0.0) / len(times)
    own = [max(step.milliseconds - overhead, 0.0) for step in times]
    if sum(own) > inside:  # short steps were cut off at 0
        own = [ms * inside / sum(own) for ms in own]
    kernels: dict[str, float] = {layer.name: 0.0 for layer in work.layers}
    others: dict[str, dict[str, float]] = {}
    for step, ms, (kind, layer) in zip(times, own, work.places, strict=True):
        if kind == "kernel" and layer in kernels:
            kernels[layer] += ms
        else:
            steps = others.setdefault("work" if kind == "kernel" else kind, {})
            place = f"{step.operator} after {layer}" if layer else f"{step.operator} before all layers"
            steps[place] = steps.get(place, 0.0) + ms
    return _Timed(
        work=work,
        layers={layer.name: layer for layer in work.layers},
        macs=macs,
        wall=wall,
        kernels=kernels,
        others=others,
        call=call,
        remainder=wall - call - sum(own),
        overhead=overhead,
    )


def _pairs(mine: _Timed, theirs: _Timed) -> dict[str, str]:
    """For each layer of the other model the same of this one: by name, or one by one where all names are others."""
    common = {layer: layer for layer in theirs.layers if layer in mine.layers}
    if common or len(mine.layers) != len(theirs.layers):
        return common
    return dict(zip(theirs.layers, mine.layers, strict=True))


@dataclass(frozen=True)
class _Peaks:
    """How many MACs, and how many bytes, the fastest layers of both models do in a millisecond."""

    macs: float
    bytes: float

    def waits(self, layer: LayerWork, size: int) -> bool:
        """Whether a layer's bytes take longer than its MACs."""
        return layer.elements * size / self.bytes > layer.macs / self.macs


def _peaks(*models: _Timed) -> _Peaks:
    rates = [
        (model.layers[name].macs / ms, model.layers[name].elements * model.work.element_bytes / ms)
        for model in models
        for name, ms in model.kernels.items()
        if ms > 0
    ]
    macs, size = (float(np.percentile([rate[index] for rate in rates] or [1.0], PEAK)) for index in (0, 1))
    return _Peaks(macs, size)


@dataclass
class _Parts:
    """Milliseconds by part and layer."""

    ratio: float  # MACs of this model over the other's
    work: GraphWork  # of this model
    found: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, key: str, layer: str, ms: float) -> None:
        steps = self.found.setdefault(key, {})
        steps[layer] = steps.get(layer, 0.0) + ms

    def layer(
        self,
        name: str,
        small: LayerWork,
        large: LayerWork,
        ms: float,
        before: float,
        floor: float,
        peaks: _Peaks,
    ) -> None:
        """A layer that took `before` and now takes `ms`: its share of the MACs against the whole model's, then why its
        time fell less than its own MACs.
        """
        own = small.macs / large.macs if large.macs else 1.0
        if abs(own - 1) <= SAME and (small.outputs, small.inputs) == (large.outputs, large.inputs):
            self.add("untouched", name, (1 - self.ratio) * before)
            self.add("kernels", name, ms - before)
            return
        self.add("uneven", name, (own - self.ratio) * before)
        rest = ms - own * before
        waits = peaks.waits(small, self.work.element_bytes)
        causes = {
            "rounding": (_rounded(small, large, self.work.channel_step) - own) * before,
            "floor": floor * (1 - own),
            "memory": (small.elements / large.elements - own) * before if waits else 0.0,
        }
        for key, most in causes.items():
            part = min(max(rest, 0.0), max(most, 0.0))
            if part > 0:
                self.add(key, name, part)
                rest -= part
        self.add("kernels", name, rest)

    def sorted(self) -> tuple[Part, ...]:
        """The parts, the largest first, each with its layers, the largest first."""
        parts = []
        for key, layers in self.found.items():
            order = sorted(layers, key=lambda layer: -abs(layers[layer]))
            what, advice = _WORDS[key]
            total = math.fsum(layers.values())
            parts.append(
                Part(
                    key=key,
                    what=what,
                    milliseconds=total,
                    layers={layer: layers[layer] for layer in order if layer},
                    advice=advice if total > 0 else "",
                )
            )
        return tuple(sorted(parts, key=lambda part: -abs(part.milliseconds)))


def _rounded(small: LayerWork, large: LayerWork, step: int) -> float:
    """A layer's share of MACs if kernels round both widths up to multiples of `step`.

    A width that the layer always had, such as the three channels of an image, is taken as it is.
    """

    def whole(count: int | None, full: int | None) -> float:
        if count is None or full is None or not full:
            return 1.0
        return 1.0 if count == full else math.ceil(count / step) * step / full

    share = whole(small.outputs, large.outputs) * whole(small.inputs, large.inputs)
    return min(share, 1.0)
