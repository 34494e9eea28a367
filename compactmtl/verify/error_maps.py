"""Where in an image the artifact differs from the torch model: a map for each output that is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compactmtl.backends import Runner
from compactmtl.errors import ArtifactError
from compactmtl.graph.inputs import as_arguments
from compactmtl.verify.accuracy import evaluating
from compactmtl.verify.parity import Inputs, reference_outputs, to_arrays
from compactmtl.verify.result import ParityResult


@dataclass(frozen=True)
class Difference:
    """|artifact - torch| of the first image, float64 (H, W), the largest of all channels; classes: 1 where they differ."""

    values: NDArray[np.float64]
    relative: float  # the largest on parity's scale; of classes the share of pixels that differ


def error_maps(
    model: nn.Module,
    runner: Runner,
    inputs: Inputs,
    parity: ParityResult,
    output_names: Sequence[str] | None = None,
) -> dict[str, Difference]:
    """A map for each output of 4 dimensions (B, C, H, W), or 3 of whole numbers (B, H, W).

    Differences are shares of what they are in `parity`, the range over all of its inputs: one image's range may be
    far smaller, and rounding then looks like an error that no gate saw.
    """
    scales = {output.name: output.scale for output in parity.outputs}
    arguments = as_arguments(model, inputs)
    with evaluating(model):
        reference = reference_outputs(model, arguments, output_names)
    artifact = runner.run(to_arrays(runner, arguments))
    return {
        name: _difference(array[0], artifact[name][0], scales[name])
        for name, array in reference.items()
        if array.ndim == 4 or (array.ndim == 3 and np.issubdtype(array.dtype, np.integer))
    }


def _difference(reference: NDArray[Any], artifact: NDArray[Any], scale: float | None) -> Difference:
    if np.issubdtype(reference.dtype, np.integer) or reference.dtype == np.bool_:
        found = (reference != artifact).astype(np.float64)
        values = found if found.ndim == 2 else found.max(axis=0)
        return Difference(values, float(found.mean()) if found.size else 0.0)
    values = np.abs(reference.astype(np.float64) - artifact).max(axis=0)
    if scale is None:
        raise ArtifactError("this parity holds no scales: an older version wrote it", "check parity again")
    return Difference(values, float(values.max(initial=0.0)) / scale)


def as_gray(differences: Mapping[str, Difference]) -> dict[str, NDArray[np.uint8]]:
    """Each map as an 8-bit picture whose white is its own largest value; black throughout where nothing differs."""
    return {
        name: np.round(255 * one.values / (one.values.max(initial=0.0) or 1.0)).astype(np.uint8)
        for name, one in differences.items()
    }
