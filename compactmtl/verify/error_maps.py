"""Where in an image the artifact differs from the torch model: a map for each output that is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compactmtl.backends import Runner
from compactmtl.graph.inputs import as_arguments
from compactmtl.verify.accuracy import evaluating
from compactmtl.verify.parity import Inputs, reference_outputs, scale_of, to_arrays


@dataclass(frozen=True)
class Difference:
    """|artifact - torch| of the first image, float64 (H, W), the largest of all channels; classes: 1 where they differ."""

    values: NDArray[np.float64]
    scale: float  # of the reference, as parity takes it


def error_maps(model: nn.Module, runner: Runner, inputs: Inputs) -> dict[str, Difference]:
    """A map for each output of 4 dimensions (B, C, H, W), or 3 of whole numbers (B, H, W)."""
    arguments = as_arguments(model, inputs)
    with evaluating(model):
        reference = reference_outputs(model, arguments)
    artifact = runner.run(to_arrays(runner, arguments))
    return {
        name: _difference(array[0], artifact[name][0])
        for name, array in reference.items()
        if array.ndim == 4 or (array.ndim == 3 and np.issubdtype(array.dtype, np.integer))
    }


def _difference(reference: NDArray[Any], artifact: NDArray[Any]) -> Difference:
    if np.issubdtype(reference.dtype, np.integer):
        found = (reference != artifact).astype(np.float64)
        return Difference(found if found.ndim == 2 else found.max(axis=0), 1.0)
    values = np.abs(reference.astype(np.float64) - artifact).max(axis=0)
    return Difference(values, scale_of(float(reference.min()), float(reference.max())))


def as_gray(found: Mapping[str, Difference]) -> dict[str, NDArray[np.uint8]]:
    """Each map as an 8-bit picture whose white is its own largest value; black throughout where nothing differs."""
    return {
        name: np.round(255 * one.values / (one.values.max(initial=0.0) or 1.0)).astype(np.uint8)
        for name, one in found.items()
    }
