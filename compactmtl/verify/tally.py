"""Differences of one output from the torch model's, added up over all cases. Also part of a device kit: numpy alone.

A device kit is one file for Python 3.8: this module must stay readable for it and may import nothing of the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Differences:
    """What `Tally` found; the fields are those of `compactmtl.verify.OutputParity`."""

    shape: tuple[int, ...]
    max_abs: float
    max_relative: float  # max_abs / scale; of classes the share that differs
    scale: float
    cosine: float
    variation: float | None  # largest change of one value from sample to sample, as a share of scale


def scale_of(low: float, high: float) -> float:
    """What differences of outputs between `low` and `high` are a share of: the range.

    A constant has none: its magnitude is the scale, and 1 where it is zero throughout. A range below 1 % of the
    magnitude is too fine for float32, whose steps are 1e-7 of the value.
    """
    magnitude, span = max(abs(low), abs(high)), high - low
    return max(span, magnitude / 100) if span else magnitude or 1.0


def _parts(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Real and imaginary parts side by side, in a last dimension of their own."""
    return np.stack([array.real, array.imag], axis=-1)


class Tally:
    """Differences, range, cosine and variation of one output, accumulated over all cases in float64."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.max_abs = 0.0
        self.low, self.high = np.inf, -np.inf
        self.dot = self.reference_square = self.artifact_square = 0.0
        self.classes: list[int] = []  # of whole numbers and truth values: how many differ, of how many
        # of each value the smallest and the largest over the samples of one shape, and how many samples
        self.extremes: dict[tuple[int, ...], tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]] = {}

    def add(self, reference: np.ndarray[Any, Any], artifact: np.ndarray[Any, Any]) -> None:
        """One more case, batch first: the torch model's output and the artifact's, of one shape."""
        if np.iscomplexobj(reference):
            reference, artifact = _parts(reference), _parts(artifact)
        if np.issubdtype(reference.dtype, np.integer) or reference.dtype == np.bool_:
            differ, size = self.classes or (0, 0)
            self.classes = [differ + int((reference != artifact).sum()), size + reference.size]
        elif reference.ndim and reference.size:
            self._vary(reference)
        a, b = reference.astype(np.float64).ravel(), artifact.astype(np.float64).ravel()
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max(initial=0.0)))
        self.low = min(self.low, float(a.min(initial=np.inf)))
        self.high = max(self.high, float(a.max(initial=-np.inf)))
        self.dot += float(a @ b)
        self.reference_square += float(a @ a)
        self.artifact_square += float(b @ b)

    def _vary(self, reference: np.ndarray[Any, Any]) -> None:
        low, high, samples = reference.min(axis=0), reference.max(axis=0), len(reference)
        if reference.shape[1:] in self.extremes:
            former_low, former_high, former = self.extremes[reference.shape[1:]]
            low, high = np.minimum(low, former_low), np.maximum(high, former_high)
            samples += former
        self.extremes[reference.shape[1:]] = (low, high, samples)

    def _variation(self) -> float | None:
        changes = [float((high - low).max()) for low, high, samples in self.extremes.values() if samples > 1]
        return max(changes, default=None)

    def result(self) -> Differences:
        """What was found so far."""
        # an empty output has no range
        scale = scale_of(self.low, self.high) if self.low <= self.high else 1.0
        norms = float(np.sqrt(self.reference_square) * np.sqrt(self.artifact_square))
        both_zero = self.reference_square == self.artifact_square == 0.0
        # A class is right or wrong: the share that differs counts, not by how many class numbers.
        relative = self.classes[0] / max(self.classes[1], 1) if self.classes else self.max_abs / scale
        variation = self._variation()
        return Differences(
            shape=self.shape,
            max_abs=self.max_abs,
            max_relative=relative,
            scale=scale,
            cosine=self.dot / norms if norms else float(both_zero),
            variation=None if variation is None else variation / scale,
        )
