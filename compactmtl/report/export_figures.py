"""Figures of one export: milliseconds of each layer, dense against compact, and where outputs differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compactmtl.backends.base import LayerTime
from compactmtl.report import format as fmt
from compactmtl.report.samples import Picture
from compactmtl.verify.result import Measured, Verification

# What runtimes add to a node's name when they fuse it or choose another layout.
_ADDED = re.compile(r"(_nchwc|_token_\d+|/WithoutBiases|_quant|/fq_input_\d+)+$")


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer by model, in the models' order; 0 where a model has no such layer."""

    name: str
    milliseconds: tuple[float, ...]


def layer_of(step: LayerTime) -> str:
    """The layer that a runtime's step runs, by the exported node's own name without what was fused into it."""
    return _ADDED.sub("", step.name).split("+")[0]


def layer_times(measured: Mapping[str, Measured]) -> tuple[list[str], list[LayerTimes]]:
    """The models whose layers were timed, and every layer in the order of execution."""
    timed = {name: one for name, one in measured.items() if one.layers}
    names: dict[str, list[float]] = {}
    for index, one in enumerate(timed.values()):
        for step, name in zip(one.layers or (), _names(one), strict=True):
            names.setdefault(name, [0.0] * len(timed))[index] += step.milliseconds
    return list(timed), [LayerTimes(name, tuple(times)) for name, times in names.items()]


def _names(measured: Measured) -> list[str]:
    """What each step is called: a kernel by its layer, where the graph tells that, whatever the runtime named it after."""
    steps = measured.layers or ()
    if measured.work is None or len(measured.work.places) != len(steps):
        return [layer_of(step) for step in steps]
    return [
        layer if kind == "kernel" and layer else layer_of(step)
        for step, (kind, layer) in zip(steps, measured.work.places, strict=True)
    ]


@dataclass(frozen=True)
class ErrorPicture:
    """One output's error map, ready to be drawn; no picture where its file is gone."""

    output: str
    picture: Picture | None
    caption: str


def error_pictures(verification: Verification, bundle: Path) -> tuple[ErrorPicture, ...]:
    """The bundle's error maps in color."""
    return tuple(
        ErrorPicture(
            name,
            _colored(bundle / one.file),
            f"{name}: largest error {fmt.small(one.largest)}, {fmt.small(one.relative)} of the range",
        )
        for name, one in verification.error_maps.items()
    )


def _colored(path: Path) -> Picture | None:
    from matplotlib import colormaps
    from PIL import Image

    try:
        with Image.open(path) as image:
            gray = np.asarray(image.convert("L"))
    except OSError:  # a run may be shown without its artifacts
        return None
    colored: Picture = np.round(255 * np.asarray(colormaps["magma"](gray))[..., :3]).astype(np.uint8)
    return colored
